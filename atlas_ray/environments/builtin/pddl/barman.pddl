; A bar robot with two hands fills shot glasses and mixes cocktails of two ingredients in a shaker.
(define (domain barman)
  (:requirements :strips :typing)
  (:types hand level beverage dispenser container - object
          ingredient cocktail - beverage
          shot shaker - container)
  (:predicates
    (ontable ?c - container) (holding ?h - hand ?c - container) (handempty ?h - hand)
    (empty ?c - container) (contains ?c - container ?b - beverage)
    (clean ?c - container) (used ?c - container ?b - beverage)
    (dispenses ?d - dispenser ?i - ingredient)
    (shaker-empty-level ?s - shaker ?l - level) (shaker-level ?s - shaker ?l - level) (next ?l - level ?above - level)
    (unshaked ?s - shaker) (shaked ?s - shaker)
    (cocktail-part1 ?c - cocktail ?i - ingredient) (cocktail-part2 ?c - cocktail ?i - ingredient))

  (:action grasp
    :parameters (?h - hand ?c - container)
    :precondition (and (ontable ?c) (handempty ?h))
    :effect (and (not (ontable ?c)) (not (handempty ?h)) (holding ?h ?c)))

  (:action leave
    :parameters (?h - hand ?c - container)
    :precondition (holding ?h ?c)
    :effect (and (not (holding ?h ?c)) (handempty ?h) (ontable ?c)))

  (:action fill-shot
    :parameters (?s - shot ?i - ingredient ?h - hand ?other - hand ?d - dispenser)
    :precondition (and (holding ?h ?s) (handempty ?other) (dispenses ?d ?i) (empty ?s) (clean ?s))
    :effect (and (not (empty ?s)) (not (clean ?s)) (contains ?s ?i) (used ?s ?i)))

  (:action refill-shot
    :parameters (?s - shot ?i - ingredient ?h - hand ?other - hand ?d - dispenser)
    :precondition (and (holding ?h ?s) (handempty ?other) (dispenses ?d ?i) (empty ?s) (used ?s ?i))
    :effect (and (not (empty ?s)) (contains ?s ?i)))

  (:action empty-shot
    :parameters (?h - hand ?s - shot ?b - beverage)
    :precondition (and (holding ?h ?s) (contains ?s ?b))
    :effect (and (not (contains ?s ?b)) (empty ?s)))

  (:action clean-shot
    :parameters (?s - shot ?b - beverage ?h - hand ?other - hand)
    :precondition (and (holding ?h ?s) (handempty ?other) (empty ?s) (used ?s ?b))
    :effect (and (not (used ?s ?b)) (clean ?s)))

  (:action pour-shot-to-clean-shaker
    :parameters (?s - shot ?i - ingredient ?d - shaker ?h - hand ?l - level ?above - level)
    :precondition (and (holding ?h ?s) (contains ?s ?i) (empty ?d) (clean ?d) (shaker-level ?d ?l) (next ?l ?above))
    :effect (and (not (contains ?s ?i)) (empty ?s) (not (empty ?d)) (not (clean ?d)) (contains ?d ?i) (unshaked ?d)
                 (not (shaker-level ?d ?l)) (shaker-level ?d ?above)))

  (:action pour-shot-to-used-shaker
    :parameters (?s - shot ?i - ingredient ?d - shaker ?h - hand ?l - level ?above - level)
    :precondition (and (holding ?h ?s) (contains ?s ?i) (unshaked ?d) (shaker-level ?d ?l) (next ?l ?above))
    :effect (and (not (contains ?s ?i)) (empty ?s) (contains ?d ?i) (not (shaker-level ?d ?l)) (shaker-level ?d ?above)))

  (:action empty-shaker
    :parameters (?h - hand ?s - shaker ?c - cocktail ?l - level ?bottom - level)
    :precondition (and (holding ?h ?s) (contains ?s ?c) (shaked ?s) (shaker-level ?s ?l) (shaker-empty-level ?s ?bottom))
    :effect (and (not (shaked ?s)) (not (contains ?s ?c)) (empty ?s)
                 (not (shaker-level ?s ?l)) (shaker-level ?s ?bottom)))

  (:action clean-shaker
    :parameters (?h - hand ?other - hand ?s - shaker)
    :precondition (and (holding ?h ?s) (handempty ?other) (empty ?s))
    :effect (clean ?s))

  (:action shake
    :parameters (?c - cocktail ?i - ingredient ?j - ingredient ?s - shaker ?h - hand ?other - hand)
    :precondition (and (holding ?h ?s) (handempty ?other) (contains ?s ?i) (contains ?s ?j)
                       (cocktail-part1 ?c ?i) (cocktail-part2 ?c ?j) (unshaked ?s))
    :effect (and (not (unshaked ?s)) (not (contains ?s ?i)) (not (contains ?s ?j)) (shaked ?s) (contains ?s ?c)))

  (:action pour-shaker-to-shot
    :parameters (?b - beverage ?s - shot ?h - hand ?d - shaker ?l - level ?below - level)
    :precondition (and (holding ?h ?d) (shaked ?d) (empty ?s) (clean ?s) (contains ?d ?b)
                       (shaker-level ?d ?l) (next ?below ?l))
    :effect (and (not (clean ?s)) (not (empty ?s)) (contains ?s ?b) (used ?s ?b)
                 (not (shaker-level ?d ?l)) (shaker-level ?d ?below))))

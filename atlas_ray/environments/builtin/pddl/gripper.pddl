; A robot with two arms carries balls between rooms.
(define (domain gripper)
  (:requirements :strips :typing)
  (:types room ball arm)
  (:predicates (at-robby ?r - room) (at ?b - ball ?r - room) (free ?a - arm) (carry ?a - arm ?b - ball))

  (:action move
    :parameters (?from - room ?to - room)
    :precondition (at-robby ?from)
    :effect (and (not (at-robby ?from)) (at-robby ?to)))

  (:action pick
    :parameters (?b - ball ?r - room ?a - arm)
    :precondition (and (at ?b ?r) (at-robby ?r) (free ?a))
    :effect (and (not (at ?b ?r)) (not (free ?a)) (carry ?a ?b)))

  (:action drop
    :parameters (?b - ball ?r - room ?a - arm)
    :precondition (and (carry ?a ?b) (at-robby ?r))
    :effect (and (not (carry ?a ?b)) (free ?a) (at ?b ?r))))

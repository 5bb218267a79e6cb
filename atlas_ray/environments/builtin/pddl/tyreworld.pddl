; Flat tyres are replaced by intact ones out of the boot.
(define (domain tyreworld)
  (:requirements :strips :typing)
  (:types thing container hub - object
          tool wheel nut - thing)
  (:constants wrench jack pump - tool)
  (:predicates
    (open ?c - container) (closed ?c - container) (unlocked ?c - container)
    (have ?x - thing) (in ?x - thing ?c - container)
    (loose ?n - nut ?h - hub) (tight ?n - nut ?h - hub)
    (on-ground ?h - hub) (not-on-ground ?h - hub) (fastened ?h - hub) (unfastened ?h - hub) (free ?h - hub)
    (on ?w - wheel ?h - hub) (inflated ?w - wheel) (not-inflated ?w - wheel) (intact ?w - wheel))

  (:action open
    :parameters (?c - container)
    :precondition (and (unlocked ?c) (closed ?c))
    :effect (and (not (closed ?c)) (open ?c)))

  (:action close
    :parameters (?c - container)
    :precondition (open ?c)
    :effect (and (not (open ?c)) (closed ?c)))

  (:action fetch
    :parameters (?x - thing ?c - container)
    :precondition (and (in ?x ?c) (open ?c))
    :effect (and (not (in ?x ?c)) (have ?x)))

  (:action put-away
    :parameters (?x - thing ?c - container)
    :precondition (and (have ?x) (open ?c))
    :effect (and (not (have ?x)) (in ?x ?c)))

  (:action loosen
    :parameters (?n - nut ?h - hub)
    :precondition (and (have wrench) (tight ?n ?h) (on-ground ?h))
    :effect (and (not (tight ?n ?h)) (loose ?n ?h)))

  (:action tighten
    :parameters (?n - nut ?h - hub)
    :precondition (and (have wrench) (loose ?n ?h) (on-ground ?h))
    :effect (and (not (loose ?n ?h)) (tight ?n ?h)))

  (:action jack-up
    :parameters (?h - hub)
    :precondition (and (on-ground ?h) (have jack))
    :effect (and (not (on-ground ?h)) (not (have jack)) (not-on-ground ?h)))

  (:action jack-down
    :parameters (?h - hub)
    :precondition (not-on-ground ?h)
    :effect (and (not (not-on-ground ?h)) (on-ground ?h) (have jack)))

  (:action undo
    :parameters (?n - nut ?h - hub)
    :precondition (and (not-on-ground ?h) (fastened ?h) (have wrench) (loose ?n ?h))
    :effect (and (not (fastened ?h)) (not (loose ?n ?h)) (unfastened ?h) (have ?n)))

  (:action do-up
    :parameters (?n - nut ?h - hub)
    :precondition (and (have wrench) (unfastened ?h) (not-on-ground ?h) (have ?n))
    :effect (and (not (unfastened ?h)) (not (have ?n)) (fastened ?h) (loose ?n ?h)))

  (:action remove-wheel
    :parameters (?w - wheel ?h - hub)
    :precondition (and (not-on-ground ?h) (on ?w ?h) (unfastened ?h))
    :effect (and (not (on ?w ?h)) (have ?w) (free ?h)))

  (:action put-on-wheel
    :parameters (?w - wheel ?h - hub)
    :precondition (and (have ?w) (free ?h) (unfastened ?h) (not-on-ground ?h))
    :effect (and (not (have ?w)) (not (free ?h)) (on ?w ?h)))

  (:action inflate
    :parameters (?w - wheel)
    :precondition (and (have pump) (not-inflated ?w) (intact ?w))
    :effect (and (not (not-inflated ?w)) (inflated ?w))))

; One arm stacks blocks on a table.
(define (domain blocksworld)
  (:requirements :strips :typing)
  (:types block)
  (:predicates (on ?b - block ?below - block) (on-table ?b - block) (clear ?b - block) (holding ?b - block) (arm-empty))

  (:action pickup
    :parameters (?b - block)
    :precondition (and (on-table ?b) (clear ?b) (arm-empty))
    :effect (and (not (on-table ?b)) (not (clear ?b)) (not (arm-empty)) (holding ?b)))

  (:action putdown
    :parameters (?b - block)
    :precondition (holding ?b)
    :effect (and (not (holding ?b)) (arm-empty) (clear ?b) (on-table ?b)))

  (:action stack
    :parameters (?b - block ?below - block)
    :precondition (and (holding ?b) (clear ?below))
    :effect (and (not (holding ?b)) (not (clear ?below)) (arm-empty) (clear ?b) (on ?b ?below)))

  (:action unstack
    :parameters (?b - block ?below - block)
    :precondition (and (on ?b ?below) (clear ?b) (arm-empty))
    :effect (and (not (on ?b ?below)) (not (clear ?b)) (not (arm-empty)) (holding ?b) (clear ?below))))

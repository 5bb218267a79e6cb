"""Rules of a user's, in a module that Ray's workers find."""


def last_but_one(trajectory):
    if trajectory.item_id == "maze_3":
        raise ValueError("not this one")
    return [len(trajectory.steps) - 1]


def late(trajectory):
    return range(len(trajectory.steps))


def only_the_first_ten(trajectory):
    if len(trajectory.item_id) > len("maze_0"):
        raise ValueError("not this one")
    return [1]

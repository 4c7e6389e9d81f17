"""Who may use the files that the service writes beside its own user."""

import os


def is_any_user_of_group_0() -> bool:
    """Whether the service runs as container engines run it that choose user ids: in group 0.

    Another such id may be chosen at the next start, so that files must be open to the group.
    """
    return os.getegid() == 0 and os.geteuid() != 0

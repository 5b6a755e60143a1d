"""The nodes of a pass-through server: the kernel's numbers on one side, real objects on the other.

Every node that the kernel knows is held by an O_PATH descriptor, so it is found
again whatever its name has become; calls that want a path get /proc/self/fd/N.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.support.lab.fuse_wire import ROOT_NODE

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(slots=True)
class Node:
    """One object: its descriptor, its identity, and how many replies have named it to the kernel."""

    fd: int
    key: tuple[int, int]
    lookups: int

    @property
    def path(self) -> str:
        """A path that leads to the object itself, even if that is a symlink."""
        return f"/proc/self/fd/{self.fd}"


class NodeTable:
    """All nodes that the kernel remembers; ``table[number]`` is one of them."""

    def __init__(self, root: Path) -> None:
        fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        node = Node(fd, _key(os.stat(fd)), 1)
        self._nodes = {ROOT_NODE: node}
        self._numbers = {node.key: ROOT_NODE}
        self._next = ROOT_NODE + 1

    def __getitem__(self, number: int) -> Node:
        return self._nodes[number]

    def find(self, parent: int, name: bytes) -> tuple[int, os.stat_result]:
        """The number and status of ``name``; counts that the kernel now gets it once more."""
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self[parent].fd)
        found = os.stat(fd)
        number = self._numbers.get(_key(found))
        if number is not None:
            os.close(fd)
            self[number].lookups += 1
        else:
            number, self._next = self._next, self._next + 1
            self._nodes[number] = Node(fd, _key(found), 1)
            self._numbers[_key(found)] = number
        return number, found

    def forget(self, number: int, lookups: int) -> None:
        """The kernel forgets that many of the replies that named the node; at none it is gone."""
        node = self._nodes.get(number)
        if node is None or number == ROOT_NODE:
            return
        node.lookups -= lookups
        if node.lookups <= 0:
            del self._nodes[number], self._numbers[node.key]
            os.close(node.fd)


def _key(found: os.stat_result) -> tuple[int, int]:
    # An open descriptor keeps the inode, so its number is not given to another in the meantime.
    return found.st_dev, found.st_ino

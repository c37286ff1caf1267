"""Objects from one process to another: small ones down a socket, large ones in shared memory.

A message is pickled with its arrays out of band (PEP 574). What is large is written once, to memory without a name
(memfd_create), and only its descriptor goes down the socket; the receiver maps it, and arrays lie in the map. No size of
/dev/shm limits it, and the kernel frees it with the last process that holds it, whatever becomes of the others. Where there is
no such memory to be had, all of the message goes down the socket, in pieces.

The socket keeps datagrams whole (SOCK_SEQPACKET): one arrives complete or not at all, and `receive` takes one at a time, so a
process that is stopped or killed in the middle of a message cannot hold up the other.
"""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from megatron_ovenc.data.errors import DataError

PIECE = 1 << 16
"""Bytes of a message that a datagram carries. Messages up to this size are not worth memory of their own."""

_ALIGNMENT = 64
_MORE, _LAST = b"+", b"."


@dataclass(frozen=True, slots=True)
class Message:
    """An object, ready to be sent."""

    parts: Sequence[bytes | memoryview]
    """The pickle, and the arrays that it refers to."""

    @classmethod
    def of(cls, item: object) -> Message:
        """Pickle an object. Its arrays are not copied, so they must not change before it is sent."""
        arrays: list[pickle.PickleBuffer] = []
        payload = pickle.dumps(item, 5, buffer_callback=arrays.append)
        return cls([payload, *(array.raw() for array in arrays)])

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(len(part) for part in self.parts)


class Channel:
    """One of the two ends of a socket."""

    def __init__(self, end: socket.socket) -> None:
        """
        Args:
            end: of a SOCK_SEQPACKET pair. If it does not block, neither `send` nor `receive` does, and messages must be small.
        """
        self._socket = end
        self._pieces: list[bytes] = []

    @classmethod
    def pair(cls) -> tuple[Channel, socket.socket]:
        """An end that does not block, and the other one, to be given to another process."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        return cls(ours), theirs

    def fileno(self) -> int:
        """Descriptor of the socket, for selectors."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this end."""
        self._socket.close()

    def send(self, message: Message) -> OSError | None:
        """Hand a message over.

        Returns:
            Why a large message had to go down the socket, if it had to.

        Raises:
            OSError: the other end is closed, or the socket is full and does not block.
        """
        trouble = None
        if message.nbytes > PIECE:
            try:
                self._share(message)
            except OSError as error:
                trouble = error
            else:
                return None
        whole = memoryview(pickle.dumps([pickle.PickleBuffer(part) for part in message.parts], 5))
        for start in range(0, len(whole), PIECE):
            last = start + PIECE >= len(whole)
            self._socket.sendmsg([_LAST if last else _MORE, whole[start : start + PIECE]])
        return trouble

    def receive(self) -> Any:
        """Take one datagram.

        Returns:
            The object, or None if that was not the last piece of it.

        Raises:
            EOFError, OSError: the other end is closed.
            DataError: this process may open no more files.
        """
        try:
            datagram, descriptors, flags = self._datagram()
        except ConnectionResetError:
            # The other end is gone and has left messages unread. The system tells this first, and once; what it sent comes next.
            datagram, descriptors, flags = self._datagram()
        if flags & socket.MSG_CTRUNC:
            raise DataError("a sample could not be received: too many open files; raise their number (`ulimit -n`)")
        if not datagram:
            raise EOFError
        self._pieces.append(datagram[1:])
        if datagram[:1] == _MORE:
            return None
        whole, self._pieces = b"".join(self._pieces), []
        parts = pickle.loads(whole)
        if descriptors:
            try:
                parts = _mapped(descriptors[0], parts)
            finally:
                os.close(descriptors[0])
        return pickle.loads(parts[0], buffers=parts[1:])

    def _datagram(self) -> tuple[bytes, list[int], int]:
        return socket.recv_fds(self._socket, PIECE + 1, 1, socket.MSG_CMSG_CLOEXEC)[:3]

    def _share(self, message: Message) -> None:
        descriptor = os.memfd_create("sample")
        try:
            offset = 0
            for part in message.parts:
                _write(descriptor, part, offset)
                offset += _padded(len(part))
            sizes = pickle.dumps([len(part) for part in message.parts])
            socket.send_fds(self._socket, [_LAST, sizes], [descriptor])
        finally:
            os.close(descriptor)


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _write(descriptor: int, part: bytes | memoryview, offset: int) -> None:
    # Written rather than mapped: where memory is short, a write says so, and a map kills the process that touches it.
    view = memoryview(part)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _mapped(descriptor: int, sizes: Sequence[int]) -> list[memoryview]:
    """The parts of a message in shared memory; the map lasts as long as any array in it."""
    # Only where samples are received: decoding processes stay without torch. Python's own mmap keeps a descriptor open for each
    # map, one for every sample that is loaded ahead; torch's does not.
    import torch

    path, length = f"/proc/self/fd/{descriptor}", os.fstat(descriptor).st_size
    memory = torch.from_file(path, shared=False, size=length, dtype=torch.uint8).numpy().data
    starts = accumulate(map(_padded, sizes), initial=0)
    return [memory[start : start + size] for start, size in zip(starts, sizes, strict=False)]

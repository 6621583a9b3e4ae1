"""LSTM layers over clips of any lengths that share rows of a batch, of which none sees another."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class Clips(NamedTuple):
    """Where the M real frames of (B,T) lie when each of their S clips is a row of its own.

    real (B,T) bool; clip, place (M,) row and column of each real frame; length (S,) frames; row (S,) where each clip is from, joined (S,)
    bool: it continues what came before the first frame of its row.
    """

    real: Tensor
    clip: Tensor
    place: Tensor
    length: Tensor
    row: Tensor
    joined: Tensor

    @staticmethod
    def of(real: Tensor, starts: Tensor) -> "Clips":
        """From real frames (B,T) and frames that start a clip (B,T); the first of a row needs no start. Clips end with their row."""
        batch, frames = real.shape
        begins = starts.clone()
        begins[:, 0] = True
        number = begins.flatten().cumsum(0) - 1
        flat = real.flatten()
        count = torch.zeros(batch * frames, dtype=torch.long, device=real.device).scatter_add_(0, number, flat.long())
        kept = count > 0  # clips that are all padding need no row
        numbers = (kept.cumsum(0) - 1)[number]
        length = count[kept]
        clip = numbers[flat]
        place = torch.arange(len(clip), device=real.device) - (length.cumsum(0) - length)[clip]
        row = torch.arange(batch, device=real.device).repeat_interleave(frames)[flat][place == 0]
        first = torch.ones_like(row, dtype=torch.bool)
        first[1:] = row[1:] != row[:-1]
        # A row continues unless something started before or at its first real frame.
        started = (starts.cumsum(1) > 0).flatten()[flat][place == 0]
        return Clips(real, clip, place, length, row, first & ~started)

    def backwards(self) -> "Clips":
        """The same clips, each from its last frame to its first."""
        return self._replace(place=self.length[self.clip] - 1 - self.place)


class State(NamedTuple):
    """What an LSTM layer remembers of B streams: h, c (1,B,H)."""

    h: Tensor
    c: Tensor


def run_clips(lstm: nn.LSTM, x: Tensor, clips: Clips, state: State | None = None) -> tuple[Tensor, State]:
    """An LSTM layer over clips, none of which sees another.

    x (B,T,C), state of the B rows before their first frame -> (B,T,H), 0 where there is no real frame; state behind their last one
    """
    rows, hidden = len(x), lstm.hidden_size
    if state is None:
        state = State(*(x.new_zeros(1, rows, hidden) for _ in range(2)))
    if not len(clips.length):
        return x.new_zeros(*x.shape[:2], hidden), state
    padded = x.new_zeros(len(clips.length), int(clips.length.max()), x.shape[-1])
    padded[clips.clip, clips.place] = x[clips.real]
    before = [torch.where(clips.joined[None, :, None], part[:, clips.row], 0.0) for part in state]
    packed = pack_padded_sequence(padded, clips.length.cpu(), batch_first=True, enforce_sorted=False)
    out, after = lstm(packed, tuple(before))
    out, _ = pad_packed_sequence(out, batch_first=True)
    y = out.new_zeros(*x.shape[:2], hidden)
    y[clips.real] = out[clips.clip, clips.place]
    last = torch.ones_like(clips.row, dtype=torch.bool)
    last[:-1] = clips.row[1:] != clips.row[:-1]
    ended = State(*(part.to(new.dtype).index_copy(1, clips.row[last], new[:, last]) for part, new in zip(state, after, strict=True)))
    return y, ended


def one_bias_lstm(inputs: int, hidden: int) -> nn.LSTM:
    """One layer with one bias, as published: PyTorch's second one stays 0."""
    lstm = nn.LSTM(inputs, hidden, batch_first=True)
    nn.init.zeros_(lstm.bias_hh_l0).requires_grad_(False)
    return lstm


class TwoLayers(nn.Module):
    """Two LSTM layers over clips; they sit directly in the class, so that weights have the names of the pose machine's release.

    temporal, flags: see lib.models.pose_machine.Lifter.
    """

    def __init__(self, inputs: int, hidden: int, temporal: str, flags: str):
        super().__init__()
        self.temporal, self.flags = temporal, flags
        self.lstm1, self.lstm2 = one_bias_lstm(inputs, hidden), one_bias_lstm(hidden, hidden)

    def over_time(
        self, x: Tensor, mask: Tensor | None, starts: Tensor | None, state: Sequence[State] | None = None
    ) -> tuple[Tensor, list[State]]:
        """x (B,T,C) -> (B,T,H), and the states of both layers behind the last frames (of use in causal networks alone)."""
        if mask is None and starts is None:
            first, s1 = self.lstm1(x, None if state is None else tuple(state[0]))
            if self.temporal == "stack":
                return self.lstm2(first.flip(1))[0].flip(1), []
            y, s2 = self.lstm2(first, None if state is None else tuple(state[1]))
            return y, [State(*s1), State(*s2)]
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask.bool()
        starts = torch.zeros_like(real) if starts is None else starts.bool()
        clips = Clips.of(real, starts)
        first, s1 = run_clips(self.lstm1, x, clips, None if state is None else state[0])
        if self.temporal == "causal":
            y, s2 = run_clips(self.lstm2, first, clips, None if state is None else state[1])
            return y, [s1, s2]
        if self.flags == "exact":
            return run_clips(self.lstm2, first, clips.backwards())[0], []
        clips = Clips.of(real.flip(1), starts)  # the release turns the frames round, but not what starts a clip
        return run_clips(self.lstm2, first.flip(1), clips)[0].flip(1), []

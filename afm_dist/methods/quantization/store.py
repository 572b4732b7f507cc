"""The rows of a table's fields as codes of few bits and levels that are trained, each field in its own way.

Fields that are stored alike are one group, looked up together. Shape legend: B batch, F fields, G fields of a
group, S slots of a field, K numbers of a slot, C codes of a slot, P planes of a code.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from afm_dist.methods.quantization.codebooks import Codebooks
from afm_dist.methods.quantization.packing import pack, plane_bytes, plane_widths
from afm_dist.methods.quantization.spec import Layout
from afm_dist.tables.parts import Store


class Group(nn.Module, ABC):
    """Fields that are stored alike.

    Args:
        layouts: Of each field; all of one ``group``.

    Attributes:
        halves: Names of the parameters that files hold in float16.
    """

    halves: Sequence[str] = ()
    sizes: Tensor

    def __init__(self, layouts: Sequence[Layout]) -> None:
        super().__init__()
        self.layouts = tuple(layouts)
        self.register_buffer("sizes", self.rebuild_sizes(), persistent=False)

    def rebuild_sizes(self) -> Tensor:
        """Compute the slots of each field anew, shape (G,); they are not stored in checkpoints."""
        return torch.tensor([layout.slots for layout in self.layouts])

    @abstractmethod
    def write(self, place: int, books: Codebooks) -> None:
        """Fill in a field.

        Args:
            place: Its number in the group.
            books: What stands for its rows.
        """

    @abstractmethod
    def decode(self, slots: Tensor, fields: slice, outside: Tensor | None) -> Tensor:
        """Look up slots of some neighbouring fields, a column a field.

        Args:
            slots: Each within its field, shape (n, G'), int64.
            fields: Which G' of the group.
            outside: Those of the slots that are not within, shape (n, G'); None: all are.

        Raises:
            IndexError: a slot that is not within.
        """

    @abstractmethod
    def field_numbers(self, place: int) -> dict[str, int]:
        """Count the numbers that are stored of a field, by the name of the tensor they are in."""

    def forward(self, slots: Tensor) -> Tensor:
        """Slots (B, G), each within its field -> (B, G, K)."""
        return self.decode(slots, slice(0, len(self.layouts)), slots >= self.sizes)

    def of_field(self, place: int, slots: Tensor) -> Tensor:
        """Slots of one field (n,) -> (n, K)."""
        return self.decode(slots[:, None], slice(place, place + 1), None).squeeze(1)


class PlainGroup(Group):
    """Fields whose rows are numbers, float32 or, in files, float16.

    Attributes:
        weight: Shape (ΣS, K).
        sparse: Whether its gradients touch only the rows that occurred.
    """

    first: Tensor

    def __init__(self, layouts: Sequence[Layout], *, sparse: bool) -> None:
        super().__init__(layouts)
        self.sparse = sparse
        self.halves = ("weight",) if layouts[0].kind == "float16" else ()
        self.weight = nn.Parameter(torch.zeros(sum(own.slots for own in layouts), layouts[0].width))
        self.register_buffer("first", self.rebuild_first(), persistent=False)

    def rebuild_first(self) -> Tensor:
        """Compute the first row of each field anew, shape (G,); they are not stored in checkpoints."""
        return _starts([layout.slots for layout in self.layouts])

    def write(self, place: int, books: Codebooks) -> None:
        """Fill in the rows of a field, which are its levels."""
        start = sum(own.slots for own in self.layouts[:place])
        self.weight[start : start + len(books.levels)] = books.levels

    def decode(self, slots: Tensor, fields: slice, outside: Tensor | None) -> Tensor:
        """Look up the rows."""
        rows = _sent_out(slots + self.first[fields], outside, len(self.weight))
        return functional.embedding(rows, self.weight, sparse=self.sparse).float()

    def field_numbers(self, place: int) -> dict[str, int]:
        """Count the rows' numbers."""
        return {"weight": self.layouts[place].slots * self.layouts[place].width}


class Scales(nn.Module):
    """A scale for each row.

    Attributes:
        weight: Shape (ΣS, 1).
        sparse: Whether its gradients touch only the rows that occurred.
    """

    def __init__(self, rows: int, *, sparse: bool) -> None:
        super().__init__()
        self.sparse = sparse
        self.weight = nn.Parameter(torch.zeros(rows, 1))


class CodedGroup(Group):
    """Fields whose rows are codes.

    The planes of a field lie one behind the other: of one sequence of codes after the other, and of each the
    widest first.

    Attributes:
        planes: Packed codes, uint8, one dimension.
        levels: What codes stand for, a field behind the other, shape (R, K); float16 in files.
        scales: Of each row, of grids with scales by row.
        owners: Which code of a slot each coordinate is of, of ``pq``, shape (G, K), uint8.
    """

    planes: Tensor
    owners: Tensor
    places: Tensor
    level_rows: Tensor
    row_starts: Tensor

    def __init__(self, layouts: Sequence[Layout], *, sparse: bool) -> None:
        super().__init__(layouts)
        first = layouts[0]
        self.kind, self.bits, self.width = first.kind, first.bits, first.width
        self.by_row, self.n_codes = first.by_row, first.codes
        self.halves = ("levels", "scales.weight") if first.by_row else ("levels",)
        planes = torch.zeros(sum(own.code_bytes for own in layouts), dtype=torch.uint8)
        self.register_buffer("planes", planes)
        self.levels = nn.Parameter(torch.zeros(sum(own.level_rows for own in layouts), self.width))
        if first.by_row:
            self.scales = Scales(sum(own.slots for own in layouts), sparse=sparse)
            self.register_buffer("row_starts", self.rebuild_row_starts(), persistent=False)
        if first.kind == "pq":
            owners = torch.zeros(len(layouts), self.width, dtype=torch.uint8)
            self.register_buffer("owners", owners)
        self.register_buffer("places", self.rebuild_places(), persistent=False)
        self.register_buffer("level_rows", self.rebuild_level_rows(), persistent=False)

    def rebuild_places(self) -> Tensor:
        """Compute where planes begin anew, shape (P, G, C'): C' sequences; they are not stored."""
        starts, found = 0, []
        for layout in self.layouts:
            count, length = layout.streams
            own = []
            for _ in range(count):
                sizes = [plane_bytes(length, width) for width in plane_widths(self.bits)]
                own.append([starts + sum(sizes[:i]) for i in range(len(sizes))])
                starts += sum(sizes)
            found.append(own)
        # Planes first; of no bits there are none.
        shape = len(found), self.layouts[0].streams[0], len(plane_widths(self.bits))
        return torch.tensor(found, dtype=torch.int64).view(shape).permute(2, 0, 1).contiguous()

    def rebuild_level_rows(self) -> Tensor:
        """Compute where the levels of codes begin anew, shape (G, C''); they are not stored.

        Of ``rq`` for each code, of all others for all of them.
        """
        starts = _starts([layout.level_rows for layout in self.layouts])[:, None]
        if self.kind != "rq":
            return starts
        each = torch.tensor([layout.codewords for layout in self.layouts])[:, None]
        return starts + torch.arange(self.n_codes) * each

    def rebuild_row_starts(self) -> Tensor:
        """Compute the first scale of each field anew, shape (G,); they are not stored in checkpoints."""
        return _starts([layout.slots for layout in self.layouts])

    def write(self, place: int, books: Codebooks) -> None:
        """Pack the codes of a field, and fill in its levels."""
        start = sum(own.code_bytes for own in self.layouts[:place])
        streams = books.codes.reshape(1, -1) if self.kind == "int" else books.codes.T
        packed = torch.cat([pack(own.contiguous(), self.bits) for own in streams])
        self.planes[start : start + len(packed)] = packed.to(self.planes.device)
        first = sum(own.level_rows for own in self.layouts[:place])
        self.levels[first : first + len(books.levels)] = books.levels.to(self.levels)
        if books.scales is not None:
            row = sum(own.slots for own in self.layouts[:place])
            self.scales.weight[row : row + len(books.scales), 0] = books.scales.to(self.levels)
        if books.owners is not None:
            self.owners[place] = books.owners.to(self.owners)

    def codes_of(self, slots: Tensor, fields: slice, outside: Tensor | None) -> Tensor:
        """Unpack the codes of slots (n, G') -> (n, G', C), int32 or, of no bits, int64."""
        if not self.bits:
            return slots.new_zeros(*slots.shape, self.n_codes)
        which = slots[..., None]
        if self.kind == "int":
            which = which * self.width + torch.arange(self.width, device=slots.device)
        beyond = None if outside is None else outside[..., None]
        codes, shift = None, 0
        for plane, width in enumerate(plane_widths(self.bits)):
            each = 8 // width
            bytes_at = which if each == 1 else torch.div(which, each, rounding_mode="floor")
            bytes_at = _sent_out(bytes_at + self.places[plane, fields], beyond, len(self.planes))
            own = functional.embedding(bytes_at, self.planes[:, None]).squeeze(-1).int()
            if each > 1:
                places = torch.bitwise_and(which, each - 1).int() * width
                own = torch.bitwise_and(torch.bitwise_right_shift(own, places), (1 << width) - 1)
            codes = own if codes is None else codes + own * (1 << shift)
            shift += width
        assert codes is not None
        return codes

    def decode(self, slots: Tensor, fields: slice, outside: Tensor | None) -> Tensor:
        """Look up codes, and what they stand for."""
        codes = self.codes_of(slots, fields, outside)
        if self.kind == "int":
            return self._on_grid(codes, slots, fields)
        rows = codes + self.level_rows[fields]
        if not self.bits:
            rows = _sent_out(rows, None if outside is None else outside[..., None], len(self.levels))
        if self.kind == "pq":
            owners = self.owners[fields].long().expand(*slots.shape, -1)
            own = rows.long().gather(-1, owners) * self.width + torch.arange(self.width, device=slots.device)
            return functional.embedding(own, self.levels.view(-1, 1)).squeeze(-1).float()
        found = functional.embedding(rows, self.levels).float()
        return found.sum(-2) if self.n_codes > 1 else found.squeeze(-2)

    def _on_grid(self, codes: Tensor, slots: Tensor, fields: slice) -> Tensor:
        """Give the levels of whole numbers (n, G', K)."""
        numbers = codes - ((1 << self.bits) - 1) / 2
        if self.by_row:
            scales = functional.embedding(
                slots + self.row_starts[fields], self.scales.weight, sparse=self.scales.sparse
            ).float()
            return self.levels[fields].float() + numbers * scales
        levels = self.levels.view(-1, 2, self.width)[fields].float()
        return levels[:, 0] + numbers * levels[:, 1]

    def field_numbers(self, place: int) -> dict[str, int]:
        """Count bytes of codes, levels, scales, and owners."""
        layout = self.layouts[place]
        found = {"planes": layout.code_bytes, "levels": layout.level_rows * self.width}
        if self.by_row:
            found["scales.weight"] = layout.slots
        if self.kind == "pq":
            found["owners"] = self.width
        return found


class QuantizedStore(Store):
    """Rows of several fields, each stored in its own way.

    Args:
        layouts: Of each field.
        sparse: Whether gradients of what there is for each row touch only the rows that occurred.

    Attributes:
        groups: Fields that are stored alike, by what they have in common.
    """

    starts: Tensor
    order: Tensor
    back: Tensor

    def __init__(self, layouts: Sequence[Layout], *, sparse: bool) -> None:
        super().__init__()
        self.layouts, self.width = tuple(layouts), layouts[0].width
        self._members = {
            key: [i for i, own in enumerate(layouts) if own.group == key]
            for key in dict.fromkeys(own.group for own in layouts)
        }
        self.groups = nn.ModuleDict()
        for key, fields in self._members.items():
            own = [layouts[i] for i in fields]
            kind = CodedGroup if own[0].coded else PlainGroup
            self.groups[key] = kind(own, sparse=sparse)
        for name in ("starts", "order", "back"):
            self.register_buffer(name, getattr(self, f"rebuild_{name}")(), persistent=False)

    def rebuild_starts(self) -> Tensor:
        """Compute the first slot of each field anew, shape (F,); they are not stored in checkpoints."""
        return _starts([layout.slots for layout in self.layouts])

    def rebuild_order(self) -> Tensor:
        """List the fields anew, group after group, shape (F,); they are not stored in checkpoints."""
        return torch.tensor([i for fields in self._members.values() for i in fields])

    def rebuild_back(self) -> Tensor:
        """List the place of each field in that order anew, shape (F,); not stored in checkpoints."""
        order = [i for fields in self._members.values() for i in fields]
        return torch.tensor([order.index(i) for i in range(len(order))])

    def write(self, field: int, books: Codebooks) -> None:
        """Fill in a field."""
        key, place = self._place(field)
        self._group(key).write(place, books)

    def forward(self, rows: Tensor) -> Tensor:
        """Look up slots counted over all fields, (B, F) -> (B, F, K)."""
        slots = rows - self.starts
        if len(self.groups) == 1:
            (group,) = self.groups.values()
            found: Tensor = group(slots)
            return found
        sizes = [len(fields) for fields in self._members.values()]
        parts = slots.index_select(1, self.order).split(sizes, 1)
        codes = [group(own) for group, own in zip(self.groups.values(), parts, strict=True)]
        return torch.cat(codes, 1).index_select(1, self.back)

    def of_field(self, field: int, slots: Tensor) -> Tensor:
        """Look up slots of one field, (n,) -> (n, K)."""
        key, place = self._place(field)
        return self._group(key).of_field(place, slots)

    def packed(self) -> QuantizedStore:
        """Give the same with float16 levels."""
        found = copy.deepcopy(self)
        for name, dtype in found.stored_dtypes().items():
            owner, _, key = name.rpartition(".")
            half = found.get_parameter(name).detach().to(dtype)
            setattr(found.get_submodule(owner), key, nn.Parameter(half, requires_grad=False))
        return found

    def stored_dtypes(self) -> Mapping[str, torch.dtype]:
        """Give the type in which files hold parameters, of those that they hold otherwise, by name."""
        return {
            f"groups.{key}.{name}": torch.float16 for key in self._members for name in self._group(key).halves
        }

    def field_numbers(self, field: int) -> dict[str, int]:
        """Count the numbers that are stored of one field, by the name of the tensor they are in."""
        key, place = self._place(field)
        counted = self._group(key).field_numbers(place)
        return {f"groups.{key}.{name}": count for name, count in counted.items()}

    def _place(self, field: int) -> tuple[str, int]:
        """Find the group of a field, and which of its fields it is."""
        key = self.layouts[field].group
        return key, self._members[key].index(field)

    def _group(self, key: str) -> Group:
        group = self.groups[key]
        assert isinstance(group, Group)
        return group

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return ", ".join(f"{key}: {len(fields)} fields" for key, fields in self._members.items())


def _starts(sizes: Sequence[int]) -> Tensor:
    return torch.tensor([0, *sizes[:-1]], dtype=torch.int64).cumsum(0)


def _sent_out(places: Tensor, outside: Tensor | None, end: int) -> Tensor:
    """Send what is outside behind the end, where no lookup succeeds."""
    return places if outside is None else torch.where(outside, end, places)

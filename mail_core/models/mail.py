"""MAIL: embedding tables, a ranking tower and, where it is on, the zero-shot tower that completes new rows.

B rows, U users, N new rows among them; A, L, C, T, F, D as in inputs.py.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mail_core.errors import InputError
from mail_core.models.config import check_choice, check_positive, check_size, read_config
from mail_core.models.embeddings import EmbeddingLayout, EmbeddingTables
from mail_core.models.esmm import HEADS, Esmm
from mail_core.models.inputs import RankingOutput, TowerInputs, UserPart, no_virtual
from mail_core.models.llae import Llae, LlaeConfig
from mail_core.models.meta_emb import MetaEmb, MetaEmbConfig
from mail_core.models.ranking import TOWERS, RankingTower, TowerConfig, pooling_of
from mail_core.models.ranking.base_dnn import BaseDnnConfig
from mail_core.models.zero_shot import LinearMap, ZeroShotConfig, zero_shot_tower


@dataclass(frozen=True, kw_only=True)
class MailConfig:
    """What a model is built from, beside its layout; the defaults are the paper's."""

    tower: str = "base_dnn"
    """Ranking tower, a name of TOWERS."""
    dim: int = 32
    """D: embedding size."""
    embedding_std: float = 0.05
    """Standard deviation of the embedding tables' initial values."""
    tower_config: TowerConfig = field(default_factory=BaseDnnConfig)
    """Configuration of the ranking tower, of the tower's own type."""
    head: str = "ctr"
    """A name of HEADS: `ctr`, or `esmm` with a second tower of the same kind for the CVR."""
    zero_shot: ZeroShotConfig | None = field(default_factory=ZeroShotConfig)
    """None: the ranking tower alone, or with another cold-start method."""
    cold_start: LlaeConfig | MetaEmbConfig | None = None
    """A peer of MAIL's that takes the zero-shot tower's place."""

    def __post_init__(self) -> None:
        check_choice(self.tower, "tower", list(TOWERS))
        check_choice(self.head, "head", HEADS)
        check_size(self.dim, "dim")
        check_positive(self.embedding_std, "embedding_std")
        wanted = TOWERS[self.tower].config_type
        if not isinstance(self.tower_config, wanted):
            raise InputError(f"tower_config: {self.tower_config!r} (tower {self.tower} takes a {wanted.__name__})")
        if self.zero_shot is not None and not isinstance(self.zero_shot, ZeroShotConfig):
            raise InputError(f"zero_shot: {self.zero_shot!r} (expected a ZeroShotConfig or None)")
        if self.cold_start is not None and self.zero_shot is not None:
            raise InputError(f"cold_start: {type(self.cold_start).__name__} (expected none beside a zero-shot tower)")
        # A sum grows with the number of behaviours, beside which one token of a new row says nothing.
        if self.zero_shot is not None and self.zero_shot.parts.token and pooling_of(self.tower_config) == "sum":
            raise InputError(f"zero_shot.variant: {self.zero_shot.variant!r} (its token needs a tower_config with "
                             "pooling 'mean', this one has 'sum')")

    def to_dict(self) -> dict[str, Any]:
        """A JSON document; `from_dict` gives this configuration back."""
        document = asdict(self)
        if self.cold_start is not None:
            document["cold_start"] = {"method": self.cold_start_method, **document["cold_start"]}
        return _json(document)

    @property
    def cold_start_method(self) -> str | None:
        """Name of the peer in COLD_START, None without one."""
        return next((name for name, (config, _) in COLD_START.items() if isinstance(self.cold_start, config)), None)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> MailConfig:
        """Read what `to_dict` wrote; absent keys take their defaults.

        Raises:
            InputError: an unknown key or tower, or a value that does not fit.
        """
        if not isinstance(document, Mapping):
            raise InputError(f"model configuration: expected a mapping, found {document!r}")
        parts = dict(document)
        tower = parts["tower"] if "tower" in parts else cls.tower
        check_choice(tower, "tower", list(TOWERS))
        sizes = parts["tower_config"] if "tower_config" in parts else {}
        parts["tower_config"] = read_config(TOWERS[tower].config_type, sizes, "tower_config")
        if "zero_shot" in parts and parts["zero_shot"] is not None:
            parts["zero_shot"] = read_config(ZeroShotConfig, parts["zero_shot"], "zero_shot")
        if "cold_start" in parts and parts["cold_start"] is not None:
            parts["cold_start"] = _read_cold_start(parts["cold_start"])
        return read_config(cls, parts, "model configuration")


COLD_START: Mapping[str, tuple[type, type]] = {"llae": (LlaeConfig, Llae), "meta_emb": (MetaEmbConfig, MetaEmb)}
"""Peers of MAIL by name: configuration and module."""


def _read_cold_start(document: Any) -> LlaeConfig | MetaEmbConfig:
    if not isinstance(document, Mapping) or "method" not in document:
        raise InputError(f"cold_start: expected a mapping with a method, found {document!r}")
    settings = dict(document)
    method = settings.pop("method")
    check_choice(method, "cold_start.method", list(COLD_START))
    return read_config(COLD_START[method][0], settings, "cold_start")


def _json(value: Any) -> Any:
    """Tuples as lists, so that a document equals itself after a round through JSON."""
    if isinstance(value, dict):
        return {k: _json(v) for k, v in value.items()}
    return [_json(v) for v in value] if isinstance(value, (list, tuple)) else value


class MailModel(nn.Module):
    """The whole model, single-process. Training wraps `zero_shot` and `ranking` in DDP and steps the tables by row."""

    def __init__(self, config: MailConfig, layout: EmbeddingLayout):
        super().__init__()
        self.config, self.layout = config, layout
        shape = layout.shape(config.dim)
        self.tables = EmbeddingTables(layout, config.dim, config.embedding_std)
        token = 1 if self.completes_all else 0
        # The ranking tower before what serves new users: a seed then gives it the same start with every method.
        completed, tower = replace(shape, length=shape.length + token), TOWERS[config.tower]
        self.ranking: RankingTower | Esmm = tower(config.tower_config, completed)
        if config.head == "esmm":
            self.ranking = Esmm(self.ranking, tower(config.tower_config, completed))
        self.zero_shot = None if config.zero_shot is None else zero_shot_tower(config.zero_shot, shape)
        method = config.cold_start_method
        self.cold_start = None if method is None else COLD_START[method][1](config.cold_start, shape)
        self.parameter_groups()

    def reset_parameters(self) -> None:
        """Fresh initial values, as after construction; after `to_empty` of a model built on the meta device."""
        for part in self.children():
            part.reset_parameters()  # type: ignore[operator]

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """zero_shot (G_A), ranking (G_B), embedding (G_B, by row) and cold_start (after them); disjoint, and together
        all parameters.

        A map that has no loss but the ranking loss belongs to G_B (4.3, None).
        """
        zero_shot = [] if self.zero_shot is None else list(self.zero_shot.parameters())
        own, ranking = ([], zero_shot) if isinstance(self.zero_shot, LinearMap) else (zero_shot, [])
        groups = {"zero_shot": own, "ranking": [*self.ranking.parameters(), *ranking],
                  "embedding": list(self.tables.parameters()),
                  "cold_start": [] if self.cold_start is None else list(self.cold_start.parameters())}
        ids = [id(p) for group in groups.values() for p in group]
        assert len(ids) == len(set(ids)), "a parameter stands in two groups"
        assert set(ids) == {id(p) for p in self.parameters()}, "a parameter stands in no group"
        return groups

    @property
    def completes_all(self) -> bool:
        """Whether every row gets a virtual token; otherwise new rows alone get virtual behaviour."""
        return self.config.zero_shot is not None and self.config.zero_shot.parts.token

    @property
    def makes_behavior(self) -> bool:
        """Whether new rows get virtual behaviour at all."""
        return self.zero_shot is not None or isinstance(self.cold_start, Llae)

    def virtual_behavior(self, a_NAD: Tensor) -> Tensor:
        """Virtual behaviour (N, K, D) of new rows from their attributes, without gradient."""
        maker = self.zero_shot if self.zero_shot is not None else self.cold_start
        assert maker is not None and not isinstance(maker, MetaEmb), "a model that makes no behaviour"
        return maker.virtual_behavior(a_NAD)

    def to_complete(self, inputs: TowerInputs) -> Tensor:
        """int64 (M,): the rows that get virtual behaviour."""
        rows_B = torch.ones_like(inputs.is_new_B) if self.completes_all else inputs.is_new_B
        return rows_B.nonzero().squeeze(1)

    def complete(self, inputs: TowerInputs, virtual_MKD: Tensor | None = None) -> TowerInputs:
        """Eqs. 8 and 10: give rows virtual behaviour, all positions valid: new rows their L positions, or every row a
        token behind its own.

        Args:
            virtual_MKD: of the rows `to_complete`; None: made here, detached and with dropout off.

        Without a zero-shot tower, or without rows to complete, the inputs come back as they are.
        """
        if self.cold_start is not None:
            return self._complete_by_peer(inputs) if self.cold_start.fitted else inputs
        if self.zero_shot is None:
            return inputs
        rows_M = self.to_complete(inputs)
        if virtual_MKD is None:
            if len(rows_M) == 0:
                return inputs
            virtual_MKD = self.zero_shot.virtual_behavior(inputs.a_BAD.index_select(0, rows_M))
        # Given no rows it still enters the graph: DDP waits for a gradient of every parameter on every rank.
        virtual_MKD, new_B = virtual_MKD.to(inputs.v_BLD.dtype), inputs.is_new_B
        if self.completes_all:
            return inputs.with_token(virtual_MKD, self.zero_shot.config.token_weight)
        return replace(inputs, v_BLD=inputs.v_BLD.index_copy(0, rows_M, virtual_MKD),
                       mask_BL=inputs.mask_BL | new_B.unsqueeze(1), is_virtual_B=inputs.is_virtual_B | new_B)

    def uncompleted(self, inputs: TowerInputs) -> TowerInputs:
        """`inputs` for the ranking tower with virtual behaviour switched off: new rows stay empty, and a token's place,
        for which the tower was built, is padding."""
        if not self.completes_all:
            return inputs
        return replace(inputs, v_BLD=F.pad(inputs.v_BLD, (0, 0, 0, 1)), mask_BL=F.pad(inputs.mask_BL, (0, 1)))

    def _complete_by_peer(self, inputs: TowerInputs) -> TowerInputs:
        """New rows get pooled behaviour as their only position (LLAE), or another ID embedding (MetaEmb)."""
        new_B = inputs.is_new_B
        new_N = new_B.nonzero().squeeze(1)
        if len(new_N) == 0:
            return inputs
        a_NAD = inputs.a_BAD.index_select(0, new_N)
        if isinstance(self.cold_start, MetaEmb):
            with torch.no_grad():
                phi_ND = self.cold_start(a_NAD)
            a_NAD = self.cold_start.with_identity(a_NAD, phi_ND)
            return replace(inputs, a_BAD=inputs.a_BAD.index_copy(0, new_N, a_NAD))
        assert isinstance(self.cold_start, Llae)
        v_NLD = F.pad(self.cold_start.virtual_behavior(a_NAD), (0, 0, 0, inputs.v_BLD.shape[1] - 1))
        first_L = torch.arange(inputs.v_BLD.shape[1], device=new_B.device) == 0
        return replace(inputs, v_BLD=inputs.v_BLD.index_copy(0, new_N, v_NLD.to(inputs.v_BLD.dtype)),
                       mask_BL=inputs.mask_BL | (new_B.unsqueeze(1) & first_L),
                       is_virtual_B=inputs.is_virtual_B | new_B)

    def forward(self, encoded: Mapping[str, Tensor]) -> Tensor:
        """Logits (B,) of encoded rows (see EmbeddingTables), new rows completed. Raises InputError as `gather` does."""
        return self.outputs(encoded).logits_B

    def outputs(self, encoded: Mapping[str, Tensor], virtual_behavior: bool = True) -> RankingOutput:
        """`forward` with the logits of every head; new rows are not completed where virtual behaviour is off."""
        inputs = self.tables.gather(encoded).inputs
        return self.ranking(self.complete(inputs) if virtual_behavior else self.uncompleted(inputs))

    @torch.no_grad()
    def embed_users(self, encoded: Mapping[str, Tensor]) -> UserPart:
        """Embed users (columns of the user group and of behaviour) and complete the new ones, once a user."""
        a_UAD, v_ULD, mask_UL = self.tables.gather_users(encoded)
        none = a_UAD.new_empty(len(a_UAD), 0, self.config.dim)
        users = self.complete(TowerInputs(a_BAD=a_UAD, v_BLD=v_ULD, mask_BL=mask_UL, c_BCD=none, t_BTD=none,
                                          dense_BF=none[:, :, 0], is_virtual_B=no_virtual(mask_UL)))
        return UserPart(a_UAD=users.a_BAD, v_ULD=users.v_BLD, mask_UL=users.mask_BL, is_virtual_U=users.is_virtual_B,
                        token_weight=users.token_weight)

    @torch.no_grad()
    def rank(self, users: UserPart, user_index_B: Tensor, encoded: Mapping[str, Tensor]) -> RankingOutput:
        """Candidates (columns of the context and item groups), row i for user user_index_B[i].

        Equals `outputs` of the joined rows. The model must be in eval mode. Holds (B, L, D): rank in chunks.
        """
        assert not self.training, "rank a model in eval mode"
        c_BCD, t_BTD, dense_BF = self.tables.gather_candidates(encoded, len(user_index_B))
        inputs = TowerInputs(a_BAD=users.a_UAD[user_index_B], v_BLD=users.v_ULD[user_index_B],
                             mask_BL=users.mask_UL[user_index_B], c_BCD=c_BCD, t_BTD=t_BTD, dense_BF=dense_BF,
                             is_virtual_B=users.is_virtual_U[user_index_B], token_weight=users.token_weight)
        return self.ranking(inputs)

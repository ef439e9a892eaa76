"""Configuration of the pre-training objective: the section `objective` of a recipe, validated on construction."""

import dataclasses

CHOICES = {
    "name": ("mlm", "next_visit", "time_to_event", "joint"),
    "history": ("every_visit", "random_cut"),
    "query_times": ("after_visits", "anytime"),
}


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """The section `objective` of a recipe.

    Attributes:
      name: `mlm` (masked codes), `next_visit`, `time_to_event`, or `joint` (all with a weight above 0).
      mlm_weight: weight of the masked-code loss in `joint`.
      next_visit_weight: weight of the next-visit loss in `joint`.
      time_to_event_weight: weight of the time-to-event loss in `joint`.
      mask_rate: share of the codes to mask, 0 < rate <= 1.
      mask_values: whether codes that carry a value are masked too.
      value_weight: weight of the loss on the values of masked codes, relative to that on the codes; 0 disables it.
      targets: shell patterns of the codes to predict in next visits and as events.
      min_patients: target codes of fewer train patients are left out.
      history: input of next-visit prediction: `every_visit` predicts every visit with causal attention; `random_cut`
        cuts each history at a random visit, sampled anew each time, with bidirectional attention. Both use only what
        was recorded before the visit began.
      known_time_share: share of next visits in training for which the head is given the start time, sampled anew each
        time. 0 builds no layer for it; above 0, a model can predict with or without the start time.
      time_gap_weight: weight of the loss on the time to the next visit, relative to that on its codes; 0 disables it.
      queries_per_row: number of visits per row after which events are predicted.
      first_event_only: whether the target is the first event of each code ever, rather than the next one.
      query_times: when events are predicted: `after_visits`, all weighted alike; or `anytime`, with query tokens
        between visits and all time in a history weighted alike (only for `time_to_event`).
      event_edges: ascending inner edges (days) of the bins of event rates; if empty, quantiles of train.
    """

    name: str
    mlm_weight: float
    next_visit_weight: float
    time_to_event_weight: float
    mask_rate: float
    mask_values: bool
    targets: tuple[str, ...]
    min_patients: int
    history: str
    known_time_share: float
    time_gap_weight: float
    queries_per_row: int
    first_event_only: bool
    query_times: str
    event_edges: tuple[float, ...]
    value_weight: float = 0.0  # default for older runs, whose configs lack this key

    def __post_init__(self):
        for key, choices in CHOICES.items():
            self._expect(getattr(self, key) in choices, key, f"one of {', '.join(choices)}")
        for key in ("mlm_weight", "next_visit_weight", "time_to_event_weight", "time_gap_weight", "value_weight"):
            self._expect(getattr(self, key) >= 0, key, "0 or more")
        self._expect(0 < self.mask_rate <= 1, "mask_rate", "more than 0 and at most 1")
        self._expect(0 <= self.known_time_share <= 1, "known_time_share", "0 to 1")
        self._expect(not isinstance(self.targets, str), "targets", "a tuple of patterns, such as ('CONDITION//*',)")
        for key in ("min_patients", "queries_per_row"):
            self._expect(getattr(self, key) >= 1, key, "1 or more")
        is_allowed = self.name == "time_to_event" or self.query_times == "after_visits"
        self._expect(
            is_allowed, "query_times", f"'after_visits' with objective.name={self.name}, to which marks are no visits"
        )
        edges = (0.0, *self.event_edges)
        is_ascending = all(isinstance(edge, int | float) for edge in edges) and list(edges) == sorted(set(edges))
        self._expect(is_ascending, "event_edges", "days above 0 in ascending order")
        if not self.weights:
            raise ValueError("objective.name: found joint with all weights 0; expected one of them above 0")
        is_allowed = not self.value_weight or "mlm" in self.weights
        self._expect(is_allowed, "value_weight", "0 without masked codes, whose values it is about")

    def _expect(self, holds: bool, key: str, expected: str) -> None:
        if not holds:
            raise ValueError(f"objective.{key}: found {getattr(self, key)!r}; expected {expected}")

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each trained objective."""
        if self.name != "joint":
            return {self.name: 1.0}
        weights = {
            "mlm": self.mlm_weight,
            "next_visit": self.next_visit_weight,
            "time_to_event": self.time_to_event_weight,
        }
        return {name: weight for name, weight in weights.items() if weight}

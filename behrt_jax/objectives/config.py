"""What a model is trained to predict: the section `objective` of a recipe, checked once."""

import dataclasses

CHOICES = {
    "name": ("mlm", "next_visit", "time_to_event", "joint"),
    "masking": ("codes", "spans", "visits"),
    "history": ("every_visit", "random_cut"),
    "query_times": ("after_visits", "anytime"),
}


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """The section `objective` of a recipe.

    Attributes:
      name: `mlm` (masked codes), `next_visit`, `time_to_event`, or `joint`: all whose weight is not 0.
      mlm_weight: of the masked codes' loss in `joint`.
      next_visit_weight: of the next visits' loss in `joint`.
      time_to_event_weight: of the events' loss in `joint`.
      mask_rate: share of the codes to hide, 0 < rate <= 1.
      masking: what is hidden together: `codes` on their own, `spans` of neighbours, or whole `visits`.
      mask_values: whether codes that carry a value are hidden too.
      targets: shell patterns of the codes that next visits and events are about.
      min_patients: targets of fewer train patients are left out.
      history: what next visits are predicted from: causally before `every_visit`, or from a history cut at a
        `random_cut`, a new one each time, in which codes see each other both ways. Either way from what was recorded
        before the visit began.
      known_time_share: share of the next visits in training whose start is given to the head, drawn anew each time; 0
        leaves out what reads it. Above 0 a model can predict with and without knowing when the visit begins.
      time_gap_weight: of the time to the next visit beside its codes; 0 leaves it out.
      queries_per_row: visits a row after which events are predicted.
      first_event_only: whether only the first event of each code counts, or the next.
      query_times: when events are predicted: `after_visits`, which count alike; or `anytime`, with marks in the
        pauses between visits and each time of a life counting alike; that for `time_to_event` alone.
      event_edges: days that part the bins of events' rates, ascending; from quantiles of train if empty.
    """

    name: str
    mlm_weight: float
    next_visit_weight: float
    time_to_event_weight: float
    mask_rate: float
    masking: str
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

    def __post_init__(self):
        for key, choices in CHOICES.items():
            self._expect(getattr(self, key) in choices, key, f"one of {', '.join(choices)}")
        for key in ("mlm_weight", "next_visit_weight", "time_to_event_weight", "time_gap_weight"):
            self._expect(getattr(self, key) >= 0, key, "0 or more")
        self._expect(0 < self.mask_rate <= 1, "mask_rate", "more than 0 and at most 1")
        self._expect(0 <= self.known_time_share <= 1, "known_time_share", "0 to 1")
        self._expect(not isinstance(self.targets, str), "targets", "a tuple of patterns, such as ('CONDITION//*',)")
        for key in ("min_patients", "queries_per_row"):
            self._expect(getattr(self, key) >= 1, key, "1 or more")
        alone = self.name == "time_to_event" or self.query_times == "after_visits"
        self._expect(
            alone, "query_times", f"'after_visits' with objective.name={self.name}, to which marks are no visits"
        )
        edges = (0.0, *self.event_edges)
        rises = all(isinstance(edge, int | float) for edge in edges) and list(edges) == sorted(set(edges))
        self._expect(rises, "event_edges", "days above 0 in ascending order")
        if not self.weights:
            raise ValueError("objective.name: found joint with all weights 0; expected one of them above 0")

    def _expect(self, holds: bool, key: str, expected: str) -> None:
        if not holds:
            raise ValueError(f"objective.{key}: found {getattr(self, key)!r}; expected {expected}")

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each objective that is trained."""
        if self.name != "joint":
            return {self.name: 1.0}
        weights = {
            "mlm": self.mlm_weight,
            "next_visit": self.next_visit_weight,
            "time_to_event": self.time_to_event_weight,
        }
        return {name: weight for name, weight in weights.items() if weight}

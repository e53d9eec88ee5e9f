"""Caption search: all images of a batch at once, for any decoder with the methods of ``protocol.Decoder``.

    captions = beam_search(decoder, features, beam_size=5)    # a list of hypotheses for each image, best first
    captions[0][0].tokens                                     # token ids without START and END

``engine`` keeps the search state. ``beam``, ``diverse`` and ``sampling`` are strategies: they choose continuations.
``constraints`` bans tokens. ``hypothesis`` is the result. ``ensemble`` makes one decoder of several.
"""

from captioner.search.beam import BeamStrategy, beam_search
from captioner.search.constraints import Constraints, prefix_words
from captioner.search.diverse import DiverseStrategy
from captioner.search.engine import Strategy, search
from captioner.search.ensemble import Ensemble
from captioner.search.hypothesis import Hypothesis
from captioner.search.sampling import SamplingStrategy

__all__ = [
    "BeamStrategy",
    "Constraints",
    "DiverseStrategy",
    "Ensemble",
    "Hypothesis",
    "SamplingStrategy",
    "Strategy",
    "beam_search",
    "prefix_words",
    "search",
]

"""Search for captions: all pictures of a batch at once, for any decoder that can take a step.

    captions = beam_search(decoder, features, beam_size=5)    # one list of hypotheses a picture, best first
    captions[0][0].tokens                                     # word ids without <start> and <end>

``engine`` keeps the books (who is alive, finished, done); ``beam``, ``diverse`` and ``sampling`` are the strategies
that choose; ``constraints`` says what may not be chosen, ``hypothesis`` is what comes out. A decoder is known by the
protocol in ``protocol`` alone; ``ensemble`` makes one of several.
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

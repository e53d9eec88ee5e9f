"""Search for captions: all pictures of a batch at once, for any decoder that can take a step.

    captions = beam_search(decoder, features, beam_size=5)    # one list of hypotheses a picture, best first
    captions[0][0].tokens                                     # word ids without <start> and <end>

``engine`` keeps the books (who is alive, finished, done), ``beam`` is the strategy that chooses, ``constraints`` says what may
not be chosen, ``hypothesis`` is what comes out. A decoder is known by the protocol in ``protocol`` alone.
"""

from captioner.search.beam import BeamStrategy, beam_search
from captioner.search.constraints import Constraints
from captioner.search.engine import search
from captioner.search.hypothesis import Hypothesis

__all__ = ["BeamStrategy", "Constraints", "Hypothesis", "beam_search", "search"]

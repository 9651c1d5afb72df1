r"""Success backed up along paths: what is found at a later node of a path informs the earlier ones.

Nodes :math:`u_1, u_2, \dots` lie on one path. A continuation from :math:`u_i` that was forced through the path's own token *stays* if it
repeats the path until it arrives at :math:`u_{i+1}`, else it *leaves*. From its arrival on, one that stays is a student sample from
:math:`u_{i+1}`, whose value has continuations of its own and those of all later nodes; the mass that leaves is a stratum of its own. Nodes of
different paths share nothing.
"""

from opdscope.core.backup.estimates import BackedUpSuccess, back_up, interval_variance
from opdscope.core.backup.links import PathLinks, no_links
from opdscope.core.backup.posterior import backed_up_outcomes, backed_up_posterior

__all__ = [
    "BackedUpSuccess",
    "PathLinks",
    "back_up",
    "backed_up_outcomes",
    "backed_up_posterior",
    "interval_variance",
    "no_links",
]

"""All mutations."""

import action_mutations
import design_mutations
import screening_mutations
import targeted_mutations

MUTATIONS = (
    *screening_mutations.MUTATIONS,
    *targeted_mutations.MUTATIONS,
    *design_mutations.MUTATIONS,
    *action_mutations.MUTATIONS,
)

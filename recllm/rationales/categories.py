"""Category rationales: which categories the user wants next, from fitting-fold items only (TwiSTAR's RA-SFT).

A row shows the last items as sids and answers with a thought and the next item. The thought names the categories of
the next few fitting items, so it says what the user is after rather than giving the target away: a thought made from
the target alone would fix the answer before it is known.
"""

from __future__ import annotations

from collections.abc import Sequence

from recllm.data.catalog import Catalog, top_categories
from recllm.data.prompts import REASONER_HISTORY, assistant, category_thought, reasoner_prompt
from recllm.data.splits import RolesSplit
from recllm.rationales.positions import fold_positions

AHEAD = 3


def rationale_rows(
    split: RolesSplit, catalog: Catalog, sid_texts: Sequence[str], stride: int, seed: int, thinks: bool = True
) -> dict[str, list]:
    """Columns `messages`, `user` and `position` of the chat data set.

    A row every `stride` events of each fitting fold, from a random offset, each with a history of up to 20 items. Only
    events of the fitting fold are read. Unless it `thinks`, a row answers the same question with the item alone.
    """
    columns: dict[str, list] = {"messages": [], "user": [], "position": []}
    fold = split.fitting
    for user_row, position in fold_positions(fold, stride, seed):
        items = fold.items(user_row)
        history = items[max(0, position - REASONER_HISTORY) : position]
        wanted = top_categories([catalog.categories[item] for item in items[position : position + AHEAD]])
        answer = (category_thought(wanted) if thinks else "") + sid_texts[items[position]]
        columns["messages"].append([*reasoner_prompt([sid_texts[item] for item in history]), assistant(answer)])
        columns["user"].append(int(fold.user_ids_U[user_row]))
        columns["position"].append(position)
    return columns

"""Which stages are compared."""

from studies.compare_stages import (
    ASCENTS,
    STAGES,
    chosen_stages,
    needs_candidates,
)


def test_every_stage_is_compared_in_its_order():
    assert list(chosen_stages(list(STAGES), False)) == list(STAGES)


def test_other_ascents_are_those_of_the_chosen_stages():
    assert list(chosen_stages(['plain', 'f alone'], True)) == [
        'plain',
        'f alone',
        'f alone, published schedule',
    ]
    every = chosen_stages(list(STAGES), True)
    assert list(every) == [*STAGES, *ASCENTS]


def test_stages_that_a_detector_without_nms_cannot_run_are_known():
    assert {n for n, stage in STAGES.items() if needs_candidates(stage)} == {
        'voted',
        'clusters',
        'published',
    }

#!/bin/sh
# Runs a stage of the tests: tools/stage.sh COMMAND… (a pytest with its arguments).
#
# These tests drive real servers, engines and VMs, on a machine that may be busy with something else. What fails is run
# once more, alone and one at a time: a defect fails again and the stage with it; what passes then is named, because a
# test that needs a second chance is either too hasty or has found a race.
#
# An end of the test runner itself (an internal error, which hides what the tests would have said) is no verdict: its
# trace is printed, and the stage is run once more from its beginning.
set -u
again_max=5

"$@"
status=$?
if [ "$status" -eq 3 ]; then
    printf '\n%s\n\n' "stage: THE TEST RUNNER FAILED (its trace is above); once more from the beginning" >&2
    "$@"
    status=$?
fi
[ "$status" -eq 1 ] || exit "$status" # 1: tests failed; anything else is no test's fault

printf '\n%s\n\n' "stage: what failed is run once more, alone" >&2
"$@" -n 0 --last-failed --last-failed-no-failures none --maxfail "$again_max" -rpfE --no-header
status=$?
if [ "$status" -eq 0 ]; then
    printf '\n%s\n\n' "stage: PASSED ONLY WHEN RUN ALONE: the tests above. Look at their first failure, further up." >&2
fi
exit "$status"

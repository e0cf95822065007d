"""Errors as values."""

from __future__ import annotations

import pickle

from archir.diag import UNSUPPORTED, ArchirError, Diagnostic, Source, Span


def test_an_error_comes_whole_from_another_process() -> None:
    found = Diagnostic("A110", "no", Span(Source("net.arch", "abc"), 1, 2), hint="yes", node="x")
    error = ArchirError(found, status=UNSUPPORTED)
    again = pickle.loads(pickle.dumps(error))
    assert (again.diagnostics, again.status, str(again)) == ((found,), UNSUPPORTED, str(error))

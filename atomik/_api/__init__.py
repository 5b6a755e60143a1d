"""What users call: `Transaction`, the one-output functions, and the questions that one can ask about a folder.

* `shortcuts`: `file`, `folder`, `path` … and the `output` that they return; each is a `transaction` with one output.
* `transaction`: staging goes to `_staging.intake`, the end to `_commit.commit`.  `in_worker`: the same for ``async with``.
* `probe`, by its `trials` and the rules in `promises`; `snapshot`; `swap`; `run_in` and its `private_layer`; `apply`, whose
  input `changeset` parses.

Paths and options go in; file objects, paths and receipts come out, and errors of `atomik.errors`.  Destinations are changed
only by commits.
"""

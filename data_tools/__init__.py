"""Tools that prepare data before a run: `scripts/convert_data` and `scripts/download_data`.

They stand beside `vertex_runtime` and not in it, because no container needs them: setup.py packages neither this folder
nor `benchmarks`. They read with the runtime's own readers, so that what they write is what a trainer would have read.
"""

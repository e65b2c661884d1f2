"""The five pictures of docs/how-it-works.md, drawn from what the code says: no run is needed."""

from __future__ import annotations

from drawing import CELL, LINE, MARGIN, PADDING, Box, Picture

from vertex_local.local.restarts import MAX_RESTARTS, MAX_RETRIES
from vertex_runtime.environment import ROLES
from vertex_runtime.order import Order

HALF, GAP = 142, 24  # two boxes beside each other, and the room between them
RIGHT = MARGIN + HALF + GAP


def data() -> Picture:
    """Draw the way of the rows from a file to the batch of a worker."""
    picture = Picture("The way of the data: rows of any format, Arrow record batches, prepared rows, one order, batches.")
    picture.card("your rows", ["CSV · JSON lines · Parquet", "TFRecord · folder · BigQuery"])
    picture.arrow("read ahead, in a thread")
    _record_batch(picture)
    picture.arrow("preprocess, as it is served")
    rows, block = 12, 4
    looks = [("blue", "orange", "green")[row // block] for row in range(rows)]
    x = MARGIN + (picture.inner - rows * CELL - 2 * 8) / 2
    picture.note("prepared rows, in memory", "bold")
    picture.note("or in a cache on disk")
    picture.space(6)
    picture.cells([str(row) for row in range(rows)], looks, x, gap=8, every=block)
    for i in range(rows // block):
        picture.bracket(x + i * (block * CELL + 8), block * CELL, f"block {i}")
    picture.space(LINE + 14)
    picture.arrow("shuffled by the seed")
    steps = list(next(Order(0, rows, block, rows // block).steps(block, 0)))  # the real one, of seed 0
    picture.note("one order, however many workers", "")
    picture.space(6)
    order = [int(row) for step in steps for row in step]
    picture.cells([str(row) for row in order], [looks[row] for row in order], x, gap=8, every=block)
    for i in range(rows // block):
        picture.bracket(x + i * (block * CELL + 8), block * CELL, f"step {i + 1}")
    picture.space(LINE + 14)
    picture.arrow("step 2, on two workers")
    for name, left, part in (("chief", MARGIN, steps[1][:2]), ("worker 0", RIGHT, steps[1][2:])):
        box = picture.rectangle(Box(left, picture.y, HALF, 2 * LINE + PADDING + 8), "card")
        picture.text(name, box.middle, box.y + LINE, HALF - 8, "bold")
        picture.cells([str(row) for row in part], [looks[row] for row in part], box.middle - CELL, box.y + LINE + 9)
    picture.space(2 * LINE + PADDING + 8)
    return picture


def _record_batch(picture: Picture) -> None:
    """Draw a batch as columns, one cell of which is bad."""
    columns = {"fare": ("12.5", "n/a", "8.0"), "lon": ("-73.98", "-74.01", "-73.95"), "time": ("06:49", "17:15", "23:02")}
    width, top = 92, picture.y
    box = picture.rectangle(Box(MARGIN, top, picture.inner, 6 * LINE + 18), "card")
    picture.text("Arrow record batch", box.middle, top + LINE, picture.inner - 8, "bold")
    for i, (name, cells) in enumerate(columns.items()):
        column = Box(MARGIN + 10 + i * (width + 6), top + LINE + 10, width, 4 * LINE + 2)
        picture.rectangle(column, ("blue", "green", "purple")[i], 4)
        picture.text(name, column.middle, column.y + LINE * 0.76, width, "bold")
        for j, cell in enumerate(cells):
            y = column.y + (j + 1) * LINE
            bad = cell == "n/a"
            if bad:
                picture.rectangle(Box(column.x + 4, y + 1, width - 8, LINE - 2), "red", 4)
            picture.text(cell, column.middle, y + LINE * 0.74, width, "red-text" if bad else "")
    picture.text("a bad cell: file, line, column", box.middle, box.bottom - 9, picture.inner, "red-text")
    picture.y = box.bottom


def loop() -> Picture:
    """Draw a call of k steps, and what three threads do over time."""
    picture = Picture("The training loop: calls of k compiled steps, evaluations, and checkpoints written in the background.")
    box = picture.rectangle(Box(MARGIN, picture.y, picture.inner, 3 * LINE + 52), "card")
    picture.text("one call of the graph", box.middle, box.y + LINE, picture.inner, "bold")
    width = 66
    for i, name in enumerate(("step 1", "step 2", "…", "step k")):
        x = MARGIN + 10 + i * (width + 8)
        step = picture.rectangle(Box(x, box.y + LINE + 14, width, 32), "blue", 4)
        picture.text(name, step.middle, step.y + 21, width)
        if i:
            picture.line([(x - 8, step.y + 16), (x, step.y + 16)], head=False)
    picture.text("each: gather its rows, then", box.middle, box.bottom - LINE - 10, picture.inner, "soft")
    picture.text("Keras's own train_step", box.middle, box.bottom - 11, picture.inner, "soft")
    picture.y = box.bottom
    picture.space(16)
    _threads(picture)
    picture.arrow("at the end", x=picture.width / 2)
    picture.card("best weights, exported", ["asked, and compared with", "what training answers"], look="green")
    return picture


def _threads(picture: Picture) -> None:
    """Draw three threads side by side, time running down."""
    width, gap, high = 84, 28, 34
    columns = [MARGIN + i * (width + gap) for i in range(3)]
    top = picture.y
    for x, name, kind in zip(columns, ("rows", "training", "saving"), ("a thread", "the loop", "a thread")):
        picture.text(name, x + width / 2, top + LINE * 0.72, width + gap + 4, "bold")
        picture.text(kind, x + width / 2, top + LINE * 1.72, width, "soft")
    top += 2 * LINE + 6

    def place(column: int, row: float, rows: float, text: str, look: str) -> Box:
        box = picture.rectangle(Box(columns[column], top + row * (high + 6), width, rows * (high + 6) - 6), look, 4)
        picture.text(text, box.middle, box.y + box.height / 2 + 5.5, width)
        return box

    feeds = [place(0, row, 1, f"rows {i + 1}", "orange") for i, row in enumerate((0, 1, 2, 5))]
    calls = [place(1, row, 1, text, "blue") for row, text in ((1, "1 step"), (2, "k steps"), (3, "k steps"), (6, "k steps"))]
    for feed, call in zip(feeds, calls):
        picture.line([(feed.x + width, feed.y + high / 2), (call.x, call.y + high / 2)])
    evaluations = [place(1, row, 1, "evaluate", "green") for row in (4, 7)]
    writes = [place(2, row, rows, "write", "purple") for row, rows in ((4.5, 2), (7.5, 1))]
    for evaluation, write in zip(evaluations, writes):
        y = evaluation.y + high * 0.75
        picture.line([(evaluation.x + width, y), (write.x, y)])
    picture.y = writes[-1].bottom + 4


def checkpoint() -> Picture:
    """Draw what is in a checkpoint, what lies beside it, and how a start goes on from it."""
    picture = Picture("A checkpoint, what lies beside it, and how the same command goes on from it.")
    picture.note("checkpoints/ckpt-000000400", "code")
    picture.space(2)
    for text, look in (
        ("weights, optimizer, metrics", "blue"), ("state of the callbacks", "purple"), ("step, best, random numbers", "green"),
        ("fingerprint", "orange"),
    ):  # fmt: skip
        picture.card("", [text], look=look)
        picture.space(3)
    picture.text("of flags, source and data", picture.width / 2, picture.y + LINE * 0.72, picture.inner, "soft")
    picture.space(LINE + 8)
    _two_places(picture, (".lock", "one live run"), ("manifest.txt", "its own files"))
    picture.arrow("killed; the same command", look="red-text")
    picture.card("take the lock")
    picture.arrow("drop half-written files")
    picture.card("newest checkpoint", ["that reads back whole"])
    picture.arrow()
    picture.card("same fingerprint?", look="orange")
    top = picture.y
    answers = ((MARGIN, "yes", ("go on at", "step 400"), "green"), (RIGHT, "no", ("refuse, name", "both values"), "red"))
    for x, answer, lines, look in answers:
        picture.line([(x + 24, top + 3), (x + 24, top + 27)])
        picture.text(answer, x + 36, top + 20.5, 60, "soft", "start")
        picture.card("", lines, look=look, x=x, width=HALF, y=top + 30)
    picture.y = top + 30 + 2 * LINE + PADDING
    return picture


def cluster() -> Picture:
    """Draw the replicas of a job, what they give each other, and what follows when one ends."""
    picture = Picture("A cluster: chief, worker and evaluator, and what follows when a replica ends.")
    chief, worker, _, evaluator = ROLES.values()
    picture.card("the job file's pools")
    picture.arrow("CLUSTER_SPEC to each", look="soft")
    top = picture.y
    high = 2 * LINE + PADDING
    picture.card(chief, ["trains, writes"], look="blue", x=MARGIN, width=HALF, y=top)
    picture.card(f"{worker} 0", ["trains"], look="blue", x=RIGHT, width=HALF, y=top)
    picture.line([(MARGIN + HALF, top + high / 2), (RIGHT, top + high / 2)], tail=True)
    picture.y = top + high
    picture.text("gradients are summed", picture.width - MARGIN, picture.y + 20.5, 230, "soft", "end")
    picture.line([(MARGIN + 24, picture.y + 3), (MARGIN + 24, picture.y + 27)])
    picture.space(30)
    top, high = picture.y, 3 * LINE + PADDING
    picture.card("outputs", ["checkpoints,", "logs, model"], x=MARGIN, width=HALF, y=top)
    picture.card(evaluator, ["follows the", "checkpoints"], look="green", x=RIGHT, width=HALF, y=top)
    picture.line([(MARGIN + HALF, top + high / 2), (RIGHT, top + high / 2)])
    picture.y = top + high
    picture.space(14)
    picture.note("when a replica ends", "bold")
    picture.space(4)
    for how, follows, look in (
        ("chief: 0", "the job succeeded", "green"), ("1 to 127", "the job fails", "red"),
        ("a signal", f"it restarts, {MAX_RESTARTS} ×", "orange"), ("… and then", f"all again, {MAX_RETRIES} ×", "orange"),
    ):  # fmt: skip
        left = picture.card("", [how], x=MARGIN, width=112, y=picture.y)
        right = picture.card("", [follows], look=look, x=MARGIN + 132, width=picture.inner - 132, y=picture.y)
        middle = left.y + left.height / 2
        picture.line([(left.x + left.width, middle), (right.x, middle)])
        picture.y = left.bottom + 4
    picture.space(-4)
    return picture


def service() -> Picture:
    """Draw how a request becomes processes on this machine."""
    picture = Picture("The service on the laptop: clients, handlers, records and queue, replicas, folders.")
    width, gap = 96, 10
    top = picture.y
    boxes = [picture.card(name, x=MARGIN + i * (width + gap), width=width, y=top) for i, name in enumerate(("gcloud", "SDK", "browser"))]
    picture.y = top + LINE + PADDING
    for box, label in zip(boxes, ("REST", "gRPC", "console")):
        picture.line([(box.x + 14, picture.y + 3), (box.x + 14, picture.y + 27)])
        picture.text(label, box.x + 22, picture.y + 20.5, width - 22, "soft", "start")
    picture.space(30)
    picture.card("who is let in", ["127.0.0.1, TLS, token, cookie"])
    picture.arrow("the API's message")
    picture.card("RPC handlers", ["the console calls them, too"], ["JobService.create_custom_job"], look="blue")
    picture.arrow("checked")
    top = picture.y
    picture.card("records", ["SQLite"], look="purple", x=MARGIN, width=HALF, y=top)
    picture.card("queue", ["4 at a time"], look="orange", x=RIGHT, width=HALF, y=top)
    picture.y = top + 2 * LINE + PADDING
    picture.line([(RIGHT + 24, picture.y + 3), (RIGHT + 24, picture.y + 27)])
    picture.text("its turn", RIGHT + 36, picture.y + 20.5, 100, "soft", "start")
    picture.line([(MARGIN + 24, picture.y + 27), (MARGIN + 24, picture.y + 3)])
    picture.text("state", MARGIN + 36, picture.y + 20.5, 100, "soft", "start")
    picture.space(30)
    picture.card("replicas", ["a process each, restarted", "by the service's rules"], look="green")
    picture.arrow("write")
    _two_places(picture, ("buckets/", "gs:// here"), ("jobs/ID/", "logs, events"))
    return picture


def _two_places(picture: Picture, *places: tuple[str, str]) -> None:
    """Draw two files or folders beside each other, each with what is in it."""
    top = picture.y
    for x, (name, what) in zip((MARGIN, RIGHT), places):
        box = picture.rectangle(Box(x, top, HALF, 2 * LINE + PADDING), "card")
        picture.text(name, box.middle, top + LINE, HALF, "code")
        picture.text(what, box.middle, top + 2 * LINE, HALF, "soft")
    picture.y = top + 2 * LINE + PADDING


PICTURES = {"data": data, "loop": loop, "checkpoint": checkpoint, "cluster": cluster, "service": service}

"""A stand-in for `appworld serve environment`: its endpoints, shapes, wording and one-world rule, with an app of notes in it.

Made after release 0.1.3.post1 of appworld on PyPI:
  appworld/serve/environment.py   the endpoints; one global world; maybe_raise_exception, whose HTTPException lacks its status code,
                                  so that FastAPI answers 500; {"output": ...}; task_to_dict; Body parameters, 422 without them
  appworld/environment.py         execute(): what is printed, "Execution successful.", "Execution failed. Traceback:", "No code
                                  available to execute."; task_completed(); a closed world's sqlite3.ProgrammingError
  appworld/evaluator.py           TestTracker.to_dict(): success, difficulty, num_tests, passes, failures, labels of them
Code is not run: a few statements are interpreted (assignments, print, calls of apis with literals), so any text may be sent.
"""

from __future__ import annotations

import ast
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = ("milk", "bread", "salt", "rice", "tea", "figs", "eggs", "oats")
DESCRIPTIONS = [{"name": "api_docs", "description": "API docs."}, {"name": "notes", "description": "Keeps notes."}]


def task(task_id: str) -> tuple[str, str, str]:
    """Returns (title, text, instruction) of a task; ids are 'abc<number>_<variant>'."""
    number, _, variant = task_id.removeprefix("abc").partition("_")
    title, text = f"list{int(number)}", WORDS[(int(number) + int(variant)) % len(WORDS)]
    return title, text, f"Write {text} into the note {title}."


def solution(task_id: str) -> list[str]:
    title, text, _ = task(task_id)
    return [
        "```python\nprint(apis.api_docs.show_app_descriptions())\n```",
        f"I write it.\n```python\nwhat = {text!r}\napis.notes.write(title={title!r}, text=what)\n```",
        "```python\napis.supervisor.complete_task()\n```",
    ]


class Fault(Exception):
    pass


class World:
    def __init__(self, task_id: str, arguments: dict[str, Any]) -> None:
        self.task_id, self.arguments = task_id, arguments
        self.names: dict[str, Any] = {}
        self.notes = {"old": "keep"}
        self.completed = self.closed = False
        self.executed: list[str] = []

    def execute(self, code: str) -> str:
        if self.closed:
            return "Execution failed. Traceback:\n(sqlite3.ProgrammingError) Cannot operate on a closed database."
        self.executed.append(code)
        try:
            tree = ast.parse(code.strip())
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            return (
                f"Execution failed. Traceback:\nSyntax error in line:\n{getattr(error, 'text', '')}\nMessage: {error}"
            )
        if not code.strip():
            return "No code available to execute."
        printed: list[str] = []
        try:
            for statement in tree.body:
                self._run(statement, printed)
        except (Fault, ValueError, RecursionError) as error:
            return f'Execution failed. Traceback:\n  File "<python-input>", line 1, in <module>\nException: {error}'
        message = "\n".join(printed)
        return message if message.strip() else "Execution successful."

    def _run(self, statement: ast.stmt, printed: list[str]) -> None:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                self.names[name] = self._value(value)
            case ast.Expr(value=ast.Call(func=ast.Name(id="print"), args=arguments)):
                printed.append(" ".join(str(self._value(argument)) for argument in arguments))
            case ast.Expr(value=value):
                self._value(value)
            case _:
                raise Fault(f"{type(statement).__name__} is not known here")

    def _value(self, node: ast.expr) -> Any:
        match node:
            case ast.Name(id=name):
                if name not in self.names:
                    raise Fault(f"name {name!r} is not defined")
                return self.names[name]
            case ast.Call(
                func=ast.Attribute(value=ast.Attribute(value=ast.Name(id="apis"), attr=app), attr=api),
                keywords=keywords,
            ):
                return self._api(f"{app}.{api}", {str(k.arg): self._value(k.value) for k in keywords})
        return ast.literal_eval(node)

    def _api(self, name: str, arguments: dict[str, Any]) -> Any:
        if name == "api_docs.show_app_descriptions":
            return json.dumps(DESCRIPTIONS)
        if name == "notes.write" and set(arguments) == {"title", "text"}:
            self.notes[str(arguments["title"])] = str(arguments["text"])
            return {"message": "Note written."}
        if name == "notes.show":
            return self.notes.get(str(arguments.get("title")), "no such note")
        if name == "supervisor.complete_task":
            self.completed = True
            return {"message": "Marked the active task complete."}
        raise Fault(f"no API named {name!r} with {', '.join(arguments) or 'no arguments'}")

    def evaluate(self) -> dict[str, Any]:
        title, text, _ = task(self.task_id)
        tests = [
            ("assert the note has the text.", self.notes.get(title) == text, "no_op_fail"),
            ("assert the task was completed.", self.completed, "no_op_fail"),
            (
                "assert no other note was changed.",
                {**self.notes, title: ""} == {"old": "keep", title: ""},
                "no_op_pass",
            ),
        ]
        passes = [{"requirement": what, "label": label} for what, good, label in tests if good]
        failures = [
            {"requirement": what, "trace": "```python\n```\n----------\nAssertionError:", "label": label}
            for what, good, label in tests
            if not good
        ]
        return {"success": not failures, "difficulty": 1, "num_tests": 3, "passes": passes, "failures": failures}


class Stub:
    """Holds the state of a stub server that a test may inspect and change."""

    def __init__(self) -> None:
        self.world: World | None = None
        self.begun: list[World] = []
        self.calls: list[str] = []
        self.seconds = 0.0  # before every answer
        self.drop = ""  # a path whose next call is carried out and then not answered
        self.answers: dict[str, Any] = {}  # path -> something else than the answer
        self.url = ""

    def handle(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        self.calls.append(path)
        if path in self.answers:
            return 200, self.answers[path]
        if method == "GET" and path.startswith("/tasks/"):
            return 200, {"output": self.described(path.removeprefix("/tasks/"))}
        if "task_id" not in body or (path == "/execute" and "code" not in body):
            return 422, {"detail": [{"type": "missing", "loc": ["body"], "msg": "Field required"}]}
        if path == "/initialize":
            self.world = World(body["task_id"], body)
            self.begun.append(self.world)
            return 200, {"output": self.described(body["task_id"])}
        if self.world is None or self.world.task_id != body["task_id"]:
            return 500, "Internal Server Error"
        if path == "/execute":
            return 200, {"output": self.world.execute(body["code"])}
        if path == "/task_completed":
            return 200, {"output": self.world.completed}
        if path == "/evaluate":
            tests = self.world.evaluate()
            if tests["failures"] and not body.get("suppress_errors", False):
                return 500, "Internal Server Error"
            return 200, {"output": tests}
        if path == "/close":
            self.world.closed = True
            return 200, {"output": None}
        return 404, {"detail": "Not Found"}

    @staticmethod
    def described(task_id: str) -> dict[str, Any]:
        person = {"first_name": "Ada", "last_name": "Bell", "email": "ada@example.com", "phone_number": "5550100"}
        return {
            "task_id": task_id,
            "instruction": task(task_id)[2],
            "supervisor": person,
            "datetime": "2023-05-18T12:00:00",
        }


@contextmanager
def serve() -> Iterator[Stub]:
    stub = Stub()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else {}
            time.sleep(stub.seconds)
            status, content = stub.handle(self.command, self.path, body)
            if stub.drop and self.path == stub.drop:
                stub.drop = ""
                self.close_connection = True
                return
            data = (content if isinstance(content, str) else json.dumps(content)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = answer

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    stub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

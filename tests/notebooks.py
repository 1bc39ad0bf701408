"""Running cells on a real Jupyter kernel."""

import textwrap

import nbformat
from nbclient import NotebookClient
from nbformat.notebooknode import NotebookNode


def run(notebook: NotebookNode, kernel: str) -> list[str]:
    """Execute a notebook; the text that each code cell printed or returned.

    A cell that raises is a nbclient.exceptions.CellExecutionError here.
    """
    NotebookClient(notebook, kernel_name=kernel, timeout=120).execute()
    return [text_of(cell) for cell in notebook.cells if cell.cell_type == "code"]


def run_cells(*cells: str, kernel: str = "python3") -> list[str]:
    """Execute cells, given as indented text, one after the other on one kernel."""
    new = nbformat.v4
    sources = [textwrap.dedent(cell).strip() for cell in cells]
    return run(new.new_notebook(cells=[new.new_code_cell(text) for text in sources]), kernel)


def text_of(cell: NotebookNode) -> str:
    texts = []
    for output in cell.outputs:
        if output.output_type == "stream":
            texts.append(output.text)
        elif "data" in output:
            texts.append(output.data.get("text/plain", ""))
    return "".join(texts)

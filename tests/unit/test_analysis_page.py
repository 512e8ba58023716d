"""The HTML page: what it embeds, and, in a headless Chromium, that it sorts, filters and shows neighbours."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from analysis_example import example_result, write_store
from PIL import Image
from sklearn.metrics import roc_auc_score

from analysis.pages import scenes
from analysis.pages.results import write_page
from analysis.stored_cells import cell_frame, read_cells

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    results = [
        example_result(300, 0.05, seed=0),
        example_result(300, 0.05, seed=1),
        example_result(300, 0.05, seed=0, attack="wanet", asr=0.2, failed="lid"),
    ]
    results[0].pairs.captions[0] = "</script><b>& a 'banana'"
    store = write_store(folder / "store", results)
    cells = read_cells(store)
    path = write_page(cell_frame(cells), cells, store, folder / "report.html", most_scenes=2)
    text = path.read_text(encoding="utf-8")
    data = json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', text, re.DOTALL)[1])
    return path, text, data, results


def test_the_page_needs_nothing_from_outside(made):
    _, text, _, _ = made
    assert re.findall(r'(?:src|href)="(?!data:)[^"]*"', text) == []
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text) == []
    assert text.count("</script>") == 2  # a caption's own is escaped


def test_every_cell_is_in_the_page_and_a_failed_one_with_its_error(made):
    _, _, data, results = made
    assert len(data["cells"]) == sum(len(result.cells) for result in results)
    failed = [cell for cell in data["cells"] if cell["status"] == "failed"]
    assert [cell["error"] for cell in failed] == ["ValueError: lid: k=32 must be below n=30"] * 2
    assert [scene["name"] for scene in data["scenes"]] == ["BadNets, small, seed 0", "WaNet, small, seed 0"]
    assert data["left_out"] == ["BadNets, small, seed 1"]
    assert data["scenes"][1]["warnings"][0].startswith("the attack did not succeed")


def test_galleries_hold_the_top_scores_with_their_images_and_captions(made):
    _, _, data, results = made
    scene, result = data["scenes"][0], results[0]
    by = {(cell.row["detector"], cell.row["normalise"]): cell.scores for cell in result.cells}
    for place, cell in enumerate(scene["cells"]):
        scores = by[cell["name"], cell["side"] != "raw"]
        expected = np.argsort(-scores, kind="stable")[: scenes.SUSPECTS].tolist()
        assert scene["galleries"][str(place)] == expected
        np.testing.assert_allclose(cell["scores"], scores[expected], rtol=1e-4)
    for row, sample in scene["samples"].items():
        assert sample["caption"] == result.pairs.captions[int(row)]
        assert sample["poison"] == result.truth[int(row)]
    clean = next(row for row, sample in scene["samples"].items() if not sample["poison"])
    url = data["images"][scene["samples"][clean]["image"]]
    assert len(set(data["images"])) == len(data["images"])  # no picture is there twice
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))))
    np.testing.assert_array_equal(image, result.pairs.images(np.array([int(clean)]))[0])


def test_neighbours_are_the_most_similar_other_samples(made):
    _, _, data, results = made
    image = results[0].embeddings.image.astype(np.float64)
    unit = image / np.linalg.norm(image, axis=1, keepdims=True)
    for row, near in data["scenes"][0]["near"].items():
        cosine = unit @ unit[int(row)]
        cosine[int(row)] = -2
        assert [other for other, _ in near] == np.argsort(-cosine)[: scenes.NEIGHBOURS].tolist()
        np.testing.assert_allclose(
            [value for _, value in near], np.sort(cosine)[::-1][: scenes.NEIGHBOURS], atol=6e-4
        )


def test_curves_have_the_area_that_the_table_says():
    rng = np.random.default_rng(1)
    is_poison = np.arange(4000) < 400
    for values in (rng.normal(size=4000) + is_poison, np.round(rng.normal(size=4000) + is_poison)):  # ties too
        curves = scenes.curves(values, is_poison)
        false, true = map(np.array, curves["roc"])
        middle = np.concatenate([[true[0]], true])
        area = np.sum(np.diff(np.concatenate([[0], false])) * (middle[1:] + middle[:-1]) / 2)
        assert area == pytest.approx(roc_auc_score(is_poison, values), abs=0.03)
        recall, precision = map(np.array, curves["pr"])
        assert precision[-1] == pytest.approx(0.1, abs=0.02)  # all found: the share of the poisons, or better
        assert (np.diff(precision) <= 1e-9).all()
        assert recall[-1] == 1


USE = """
    const all = query => [...document.querySelectorAll(query)];
    const column = name => all("#cell-table th").findIndex(th => th.textContent === name);
    const values = name => all("#cell-table tbody tr").map(tr => tr.cells[column(name)].dataset.value);
    const shown = () => all("#gallery figure").map(f => f.className);
    const pick = (id, value) => { $(id).value = value; $(id).dispatchEvent(new Event("change")); };
    const search = words => { $("words").value = words; $("words").dispatchEvent(new Event("input")); };
    const chip = document.querySelector('.chip[data-name="slof"]');

    const heading = all("#cell-table th")[column("AUROC")];
    heading.click(); result.down = values("AUROC");
    heading.click(); result.up = values("AUROC");

    result.all = shown();
    pick("truth", "clean"); result.clean = shown();
    pick("truth", "all");
    search("photo of a banana"); result.captions = all("#gallery figcaption").map(f => f.textContent);
    search("");

    chip.click();
    result.without = values("detector");
    result.by = [...$("by").options].map(o => o.textContent);
    chip.click();
    pick("side", "both"); result.both = [...$("by").options].length;
    pick("side", "normalised");

    pick("attack", "wanet"); result.attacks = [...new Set(values("attack"))];
    pick("attack", "");
    const [everything, nothing] = all("#chips button:not(.chip)");
    nothing.click(); chip.click(); result.alone = [...new Set(values("detector"))];
    everything.click();

    pick("scene", "1");
    result.warning = $("warning").textContent;
    result.names = all(".scene").map(e => e.textContent);
    pick("scene", "0");
    pick("by", [...$("by").options].find(o => o.textContent === "SLOF").value);
    document.querySelector("#gallery figure button").click();
    result.near = all("#near figure").length;
    result.lines = all("#roc polyline").length;
"""


def in_browser(path: Path, script: str, screenshot: Path) -> dict:
    """Open a copy of the page that runs `script` after its own; return what it put into `result`."""
    copy = path.with_name("tried.html")
    ending = f"""<pre id="result" hidden></pre><script>{{
    const result = {{}};
    try {{ {script} }} catch (error) {{ result.error = String(error.stack); }}
    document.getElementById("result").textContent = JSON.stringify(result); }}</script></body>"""
    copy.write_text(path.read_text(encoding="utf-8").replace("</body>", ending), encoding="utf-8")
    command = [
        str(BROWSER),
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        f"--user-data-dir={path.parent / 'profile'}",
        "--window-size=1300,2600",
        "--virtual-time-budget=4000",
    ]
    about = {"capture_output": True, "text": True, "timeout": 120, "check": True}
    subprocess.run([*command, f"--screenshot={screenshot}", copy.as_uri()], **about)
    dumped = subprocess.run([*command, "--dump-dom", copy.as_uri()], **about)
    found = re.search(r'<pre id="result"[^>]*>(.*?)</pre>', dumped.stdout, re.DOTALL)
    assert found, f"no result: {dumped.stderr[-2000:]}"
    result = json.loads(html.unescape(found[1]))
    assert "error" not in result, result["error"]
    return result


@pytest.mark.skipif(BROWSER is None, reason="no chromium here (Debian: apt-get install chromium)")
def test_in_a_browser_the_table_sorts_and_the_gallery_filters(made, tmp_path):
    path, _, data, _ = made
    result = in_browser(path, USE, tmp_path / "page.png")
    down = [float(value) for value in result["down"] if value]
    assert down == sorted(down, reverse=True)
    assert [float(value) for value in result["up"] if value] == down[::-1]
    assert result["down"][-1] == result["up"][-1] == ""  # the failed cell stays last
    assert len(result["all"]) == scenes.SUSPECTS
    assert result["clean"] == ["clean"] * result["all"].count("clean")
    assert result["captions"]
    assert all("photo of a banana" in caption for caption in result["captions"])
    assert "SLOF" not in result["without"]
    assert "SLOF" not in result["by"]
    assert result["attacks"] == ["WaNet"]
    assert result["alone"] == ["SLOF"]
    assert result["both"] == len(data["scenes"][0]["cells"])
    assert result["warning"].startswith("the attack did not succeed")
    assert set(result["names"]) == {"WaNet, small, seed 0"}
    assert result["near"] == 1 + scenes.NEIGHBOURS
    assert result["lines"] == len(result["by"]) + 1
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.size[0] == 1300
        assert len(set(picture.convert("RGB").resize((130, 260)).getdata())) > 100

"""Academia: the actions of AgentGym's environment over a made-up network of papers and authors."""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from atlas_ray.environments.builtin.tools.core import Tool, Toolbox, ToolError

N_PAPERS, N_AUTHORS = 220, 130

_GIVEN = "Anna Bo Chen Daria Emil Fatima Georg Hana Igor Julia Kofi Lena Marco Nadia Omar Priya Raul Sofia Tomas Uma"
_FAMILY = (
    "Adler Bauer Costa Dimitrov Eriksen Fischer Gupta Haddad Ito Jovanovic Kim Larsen Mensah Nguyen Oliveira Park "
    "Ricci Silva Takeda Weber"
)
_METHODS = (
    "Graph Attention|Contrastive Learning|Sparse Coding|Variational Inference|Curriculum Learning|Active Learning|"
    "Federated Learning|Neural Rendering|Meta Learning|Beam Search|Tensor Factorization|Prompt Tuning"
)
_TOPICS = (
    "Traffic Forecasting|Protein Folding|Machine Translation|Code Search|Medical Imaging|Recommendation|Robot Grasping|"
    "Speech Synthesis|Question Answering|Anomaly Detection|Weather Models|Theorem Proving|Music Tagging|Crop Monitoring"
)
_FORMS = ("{} for {}", "Robust {} in {}", "Scaling {} to {}", "Rethinking {} for {}", "A Survey of {} in {}")
VENUES = ("AAAI", "ACL", "CVPR", "ICML", "IEEE Access", "KDD", "NeurIPS", "Neurocomputing", "Pattern Recognition")
_JOURNALS = frozenset({"IEEE Access", "Neurocomputing", "Pattern Recognition"})
_ORGS = (
    "University of Bergen",
    "Kyoto Institute",
    "ETH Lab",
    "Northern College",
    "Polytechnic of Porto",
    "Delta Research",
)


@dataclass(frozen=True)
class Paper:
    """A paper; `cites` are the titles of earlier ones."""

    title: str
    authors: tuple[str, ...]
    year: int
    venue: str
    citations: int
    keywords: tuple[str, ...]
    cites: tuple[str, ...]

    @property
    def kind(self) -> str:
        """Conference or Journal."""
        return "Journal" if self.venue in _JOURNALS else "Conference"


@functools.cache
def authors() -> Mapping[str, str]:
    """Each author's organization."""
    rng = random.Random("academia/authors")
    names = rng.sample([f"{given} {family}" for given in _GIVEN.split() for family in _FAMILY.split()], N_AUTHORS)
    return {name: rng.choice(_ORGS) for name in names}


@functools.cache
def papers() -> Mapping[str, Paper]:
    """The papers by title, the oldest first."""
    rng = random.Random("academia/papers")
    methods, topics, names = _METHODS.split("|"), _TOPICS.split("|"), list(authors())
    titles = rng.sample([form.format(m, t) for form in _FORMS for m in methods for t in topics], N_PAPERS)
    years = sorted(rng.randint(2008, 2023) for _ in titles)
    made: dict[str, Paper] = {}
    for title, year in zip(titles, years, strict=True):
        # people write with those around them
        start = rng.randrange(N_AUTHORS)
        circle = [names[(start + n) % N_AUTHORS] for n in range(7)]
        earlier = [one for one in made.values() if one.year < year][-40:]
        made[title] = Paper(
            title,
            tuple(rng.sample(circle, rng.randint(2, 4))),
            year,
            rng.choice(VENUES),
            rng.randrange(0, 400),
            tuple(rng.sample([*methods, *topics], 3)),
            tuple(one.title for one in rng.sample(earlier, min(len(earlier), rng.randint(2, 6)))),
        )
    return made


@functools.cache
def joint(one: str, other: str) -> tuple[Paper, ...]:
    """The papers that two authors wrote together."""
    return tuple(paper for paper in papers().values() if one in paper.authors and other in paper.authors)


@functools.cache
def collaborators(name: str) -> tuple[str, ...]:
    """Those that an author has written with, in the order of the alphabet."""
    found = {author for paper in papers().values() if name in paper.authors for author in paper.authors}
    return tuple(sorted(found - {name}))


# --- the actions ---


@dataclass
class State:
    """The networks that have been loaded."""

    loaded: set[str] = field(default_factory=set)


def _load(net: str) -> Any:
    def run(state: State) -> str:
        state.loaded.add(net)
        return f"{net} is loaded."

    return run


def _paper(state: State, node: str) -> Paper:
    if "PaperNet" not in state.loaded:
        raise ToolError("PaperNet is not loaded. Please load it first.")
    paper = papers().get(node.strip())
    if paper is None:
        raise ToolError("There is no such paper in PaperNet.")
    return paper


def _author(state: State, node: str) -> str:
    if "AuthorNet" not in state.loaded:
        raise ToolError("AuthorNet is not loaded. Please load it first.")
    if node.strip() not in authors():
        raise ToolError("There is no such author in AuthorNet.")
    return node.strip()


def _neighbours(state: State, graph: str, node: str) -> Any:
    if graph == "PaperNet":
        return list(_paper(state, node).cites)
    if graph == "AuthorNet":
        return list(collaborators(_author(state, node)))
    raise ToolError("The graph must be 'PaperNet' or 'AuthorNet'.")


def _paper_node(state: State, node: str) -> Any:
    paper = _paper(state, node)
    return {
        "authors": list(paper.authors),
        "year": paper.year,
        "venue": paper.venue,
        "n_citation": paper.citations,
        "keywords": list(paper.keywords),
        "doc_type": paper.kind,
    }


def _author_node(state: State, node: str) -> Any:
    name = _author(state, node)
    return {"name": name, "org": authors()[name]}


def _author_edge(state: State, node1: str, node2: str) -> Any:
    found = joint(_author(state, node1), _author(state, node2))
    if not found:
        raise ToolError("There is no edge between these authors.")
    return {"papers": [paper.title for paper in found]}


def _paper_edge(state: State, node1: str, node2: str) -> Any:
    one, other = _paper(state, node1), _paper(state, node2)
    cites = other.title in one.cites
    return f"The first paper {'cites' if cites else 'does not cite'} the second."


_NODE: dict[str, Any] = {"node": "string"}
_EDGE: dict[str, Any] = {"node1": "string", "node2": "string"}

TOOLBOX = Toolbox.of(
    "academia",
    "You answer questions about papers and their authors with the help of actions. PaperNet links papers to those that "
    "they cite, AuthorNet links authors who wrote together. Load a network before you ask about it.",
    7,
    [
        Tool("loadPaperNet", "load PaperNet", _load("PaperNet")),
        Tool("loadAuthorNet", "load AuthorNet", _load("AuthorNet")),
        Tool(
            "neighbourCheck",
            "the papers that a paper cites (graph PaperNet), or an author's collaborators (graph AuthorNet)",
            _neighbours,
            {"graph": "string", "node": "string"},
        ),
        Tool("paperNodeCheck", "a paper's authors, year, venue, citations, keywords and type", _paper_node, _NODE),
        Tool("authorNodeCheck", "an author's organization", _author_node, _NODE),
        Tool("authorEdgeCheck", "the papers that two authors wrote together", _author_edge, _EDGE),
        Tool("paperEdgeCheck", "whether a paper cites another one", _paper_edge, _EDGE),
    ],
)

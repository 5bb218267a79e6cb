"""Figure 2, and what training costs against what it brings. Flows in: `PaperRuns`; flows out: figures for the page."""

from __future__ import annotations

from collections import Counter

from matplotlib import style

from atlas_ray.report.drawing import ACCENT, INK, MUTED, STYLE, Figure, panel
from atlas_ray.report.paper.ours import ArmRuns, PaperRuns
from atlas_ray.report.paper.printed import printed
from atlas_ray.report.paper.tables import GROUPS, members
from atlas_ray.report.scatter import Dot, scatter

_BACKBONES = {
    "Llama-3.1-8B": ("llama", "table1", "all", "atlas"),
    "Mistral-7B": ("mistral", "table7", "mistral/all", "mistral/atlas"),
    "Qwen2.5-7B": ("qwen", "table7", "qwen/all", "qwen/atlas"),
}
_BAR = 0.36


def figure2(runs: PaperRuns) -> list[Figure]:
    """Three backbones, all steps beside ATLAS's: ours as bars with intervals, the paper's printed figures as marks."""
    placed = runs.rows.get("figure2", {})
    if not any(name in runs.arms for name in placed.values()):
        return []
    return [_backbones(runs, average, group) for average, group in GROUPS.items()]


def _backbones(runs: PaperRuns, average: str, group: str) -> Figure:
    with style.context(["default", STYLE]):
        figure, axes = panel(2.4, 0.13, 0.14, 0.97, 0.96, grid="y")
        count = 0
        for x, (prefix, table, *keys) in enumerate(_BACKBONES.values()):
            rows = {row.key: row for row in printed(table).rows}
            for side, kind, key in ((-1, "all", keys[0]), (1, "atlas", keys[1])):
                at, colour = x + side * (_BAR / 2 + 0.01), ACCENT if kind == "atlas" else INK
                arm = runs.arms.get(runs.rows["figure2"].get(f"{prefix}/{kind}", ""))
                found = runs.mean(arm, members(average)) if arm else None
                if found is not None:
                    axes.bar(at, found.value, _BAR, color=colour, alpha=0.75, linewidth=0)
                    axes.plot([at, at], [found.low, found.high], color=colour, linewidth=1.2)
                    count += found.n
                axes.plot([at - _BAR / 2, at + _BAR / 2], [rows[key].figures[average]] * 2, color=MUTED, linewidth=1.6)
        axes.set_xticks(range(len(_BACKBONES)), list(_BACKBONES))
        axes.set_ylabel(f"{group} average, %")
        axes.set_ylim(0, 100)
        shown = [(arm, runs.averaged(arm, members(average))) for arm in _shown(runs)]
        envs = sorted({env for arm, among in shown for env in among if arm.scores.get(env)})
        whose = sorted({runs.other_tasks[env] for env in envs if env in runs.other_tasks})
        models = ", ".join(f"{arm.name}: {arm.model}" for arm in _shown(runs))
        caption = (
            f"Left of each pair all steps, right ATLAS's; lines across: the paper's averages, of all its environments. "
            f"Ours: {', '.join(envs) or 'none'} ({count} episodes{''.join(f'; {words}' for words in whose)}). {models}."
        )
        label, slug = f"Three backbones, {group}", f"figure2-{average.replace('_', '-')}"
        return Figure.of(figure, slug, label, f"Figure 2: backbones, {group}", caption)


def _shown(runs: PaperRuns) -> list[ArmRuns]:
    return [runs.arms[name] for name in runs.rows.get("figure2", {}).values() if name in runs.arms]


def cost_figures(runs: PaperRuns) -> list[Figure]:
    """Success against what training took, in counted operations: arms that were played in the same environments."""
    found = []
    for average, group in GROUPS.items():
        means = []
        for arm in runs.arms.values():
            counted = [cost.flops for cost in arm.training.values() if cost.flops]
            mean = runs.mean(arm, members(average))
            if counted and mean is not None:
                means.append((sum(counted) / len(counted), mean, arm.name))
        played = Counter(mean.of for _, mean, _ in means)
        means = [one for one in means if one[1].of == played.most_common(1)[0][0]]
        if len(means) < 2:
            continue
        with style.context(["default", STYLE]):
            most = max(flops for flops, _, _ in means)
            dots = [Dot(name, 100 * flops / most, m.value, m.low, m.high) for flops, m, name in means]
            figure = scatter(dots, "atlas", f"operations of training, % of {most:.2g}", f"{group} average, %")
            of = ", ".join(means[0][1].of) or "all environments of the group"
            caption = f"{of}; {sum(mean.n for _, mean, _ in means)} episodes of {len(means)} arms."
            slug, label = f"training-cost-{average.replace('_', '-')}", f"Cost of training against success, {group}"
            found.append(Figure.of(figure, slug, label, f"What training costs and brings, {group}", caption))
    return found

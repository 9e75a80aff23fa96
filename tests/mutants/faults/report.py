"""Faults of the report."""

from ..fault import Fault

FAULTS = (
    Fault(
        "report-escape",
        "esc",
        "html.escape(str(value), quote=True)",
        "str(value)",
        ("test_markup_in_user_strings_stays_text",),
    ),
    Fault("report-bar", "bar", "min(max(value, 0), 1)", "value", ("test_bars_stay_in_their_box",)),
    Fault("report-percent", "percent", "{100 * value:.1f} %", "{value:.1f} %", ("test_whole_report",)),
    Fault(
        "report-duration",
        "duration",
        "minutes // 60:,} h {minutes % 60} min",
        "minutes // 60:,} h {minutes} min",
        ("test_numbers_for_a_reader",),
    ),
    Fault(
        "report-heat-map",
        "heat_map",
        "(28, 126, 214) if level < 0 else (232, 89, 12)",
        "(28, 126, 214) if level > 0 else (232, 89, 12)",
        ("test_pictures_show_the_arrays",),
    ),
    Fault(
        "report-sheet",
        "sheet",
        "(i % columns * side, i // columns * side)",
        "(i // columns * side, i % columns * side)",
        ("test_map_tiles_show_their_image",),
    ),
    Fault("report-tile", "tile", "1 - xy[1]", "xy[1]", ("test_map_tiles_show_their_image",)),
    Fault("report-needed", "needed", ") + 1, len(shares))", "), len(shares))", ("test_spectrum_counts_dimensions",)),
    Fault(
        "report-strip",
        "strip_over_time",
        "evenly_spaced(len(maps),",
        "evenly_spaced(len(maps) - 1,",
        ("test_matrices_over_time_are_eight_with_first_and_last",),
    ),
    Fault(
        "report-confusion", "cell", "if right else", "if not right else", ("test_right_is_blue_and_wrong_is_orange",)
    ),
    Fault(
        "report-mistakes",
        "worst",
        "counts * (1 - np.eye(len(counts), dtype=counts.dtype))",
        "counts",
        ("test_confusion_in_numbers_and_words",),
    ),
    Fault(
        "report-damage",
        "drawn_from.decorate.guarded",
        'run.why.append(f"Not drawn from pictures.npz, {said}: {cause}")',
        "pass",
        ("test_arrays_that_do_not_fit_together",),
    ),
    Fault("report-cut-line", "read_metrics", "unreadable += 1", "raise", ("test_cut_off_last_line_and_repeated_step",)),
    Fault("report-last", "Run.last", "max(finite)", "min(finite)", ("test_the_newest_finite_value_is_shown",)),
    Fault("report-thinned", "thinned", "np.nanmean(values[b])", "values[b].max()", ("test_long_curves_are_means",)),
    Fault(
        "report-verdict", "verdict", "learned = all(", "learned = any(", ("test_level_with_one_rival_is_not_learned",)
    ),
    Fault(
        "report-collapse",
        "collapse",
        "spread < LEAST_SPREAD",
        "spread > LEAST_SPREAD",
        ("test_collapse_is_the_main_news",),
    ),
    Fault(
        "report-panel",
        "QUALITY",
        '"val/online_top1", "held-out images"',
        '"val/online_top", "held-out images"',
        ("test_every_panel_is_of_a_metric_that_is_written",),
    ),
    Fault(
        "report-loss-panel",
        "MACHINERY",
        '"train/embedding_std", "standard deviation"',
        '"train/std", "standard deviation"',
        ("test_every_panel_is_of_a_metric_that_is_written",),
    ),
    Fault(
        "report-interval",
        "accuracies",
        'interval("linear.linear_low", "linear.linear_high")',
        'interval("knn.knn_low", "knn.knn_high")',
        ("test_intervals_stand_beside_their_protocol",),
    ),
    Fault(
        "report-table",
        "summary_section",
        "bar(run.score(name, row), row)",
        'bar(run.score(name, "trained"), row)',
        ("test_every_row_of_the_table_has_its_own_numbers",),
    ),
    Fault(
        "report-full-disk",
        "report",
        "storage.write(target, text)",
        "target.write_text(text)",
        ("test_full_disk_leaves_the_old_report",),
    ),
)

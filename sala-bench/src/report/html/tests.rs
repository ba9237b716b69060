//! The page is read again: is it whole, does it stand alone, and does it say what the numbers say?

use std::collections::{BTreeMap, BTreeSet};

use roxmltree::{Document, Node};

use super::super::{tests::source, workload::Settings};
use super::*;

fn report_of(change: impl FnOnce(&mut Workload)) -> Report {
    let settings = Settings {
        margin: Some(0.05),
        ..Settings::default()
    };
    let mut workload = Workload::new(&source(), &settings).unwrap();
    change(&mut workload);
    Report {
        workloads: vec![workload],
        profiles: Vec::new(),
    }
}

fn report() -> Report {
    report_of(|_| {})
}

/// The drawings of a page, each as a document of its own; a drawing that is not well-formed fails here.
fn drawings(page: &str) -> Vec<String> {
    let mut drawings = Vec::new();
    let mut rest = page;
    while let Some(start) = rest.find("<svg") {
        let end = start + rest[start..].find("</svg>").unwrap() + "</svg>".len();
        Document::parse(&rest[start..end]).unwrap();
        drawings.push(rest[start..end].to_owned());
        rest = &rest[end..];
    }
    drawings
}

/// The values of an attribute anywhere in the page.
fn attributes<'a>(page: &'a str, name: &str) -> Vec<&'a str> {
    let mark = format!(" {name}=\"");
    let ends = page.split(mark.as_str()).skip(1);
    ends.map(|rest| rest.split('"').next().unwrap()).collect()
}

#[test]
fn drawings_are_well_formed_and_named() {
    let page = page(&report());
    let figures: Vec<String> = (drawings(&page).into_iter())
        .filter(|svg| svg.contains("role=\"img\""))
        .collect();
    // Differences, two costs, three courses, loss, gap, climbs.
    assert_eq!(figures.len(), 9);
    let ids = attributes(&page, "id");
    let unique: BTreeSet<_> = ids.iter().collect();
    assert_eq!(ids.len(), unique.len(), "{ids:?}");
    for figure in &figures {
        let document = Document::parse(figure).unwrap();
        let labels = document
            .root_element()
            .attribute("aria-labelledby")
            .unwrap();
        for id in labels.split(' ') {
            let named = document
                .descendants()
                .find(|n| n.attribute("id") == Some(id));
            assert!(!named.unwrap().text().unwrap().is_empty(), "{id}");
        }
        assert!(
            !figure.contains("NaN") && !figure.contains("inf"),
            "{figure}"
        );
    }
}

#[test]
fn tags_are_closed_in_the_order_in_which_they_were_opened() {
    let page = page(&report());
    let mut open: Vec<&str> = Vec::new();
    for tag in page.split('<').skip(1) {
        let (tag, _) = tag.split_once('>').unwrap();
        let name = tag.split_whitespace().next().unwrap();
        match name.strip_prefix('/') {
            Some(closed) => assert_eq!(open.pop(), Some(closed), "{tag}"),
            None if name == "!DOCTYPE" || name == "meta" || tag.ends_with('/') => {}
            None => open.push(name),
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn the_page_needs_nothing_but_itself() {
    let page = page(&report());
    let page = page.replace("http://www.w3.org/2000/svg", "");
    for foreign in [
        "http:",
        "https:",
        "<script",
        " src=",
        "@import",
        "<link",
        "<img",
        "javascript:",
    ] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    for reference in page.split("url(").skip(1) {
        assert!(reference.starts_with('#'), "{}", &reference[..20]);
    }
}

#[test]
fn words_from_outside_cannot_become_markup() {
    let bad = "<script>alert('x')</script> & \"quoted\"";
    let page = page(&report_of(|workload| {
        workload.description = bad.into();
        workload.experiment = bad.into();
        workload.plan = bad.into();
        workload.rows[1].optimizer = bad.into();
        workload.curves[1].optimizer = bad.into();
        workload.comparisons[0].differences[0].optimizer = bad.into();
    }));
    assert!(!page.contains("<script") && page.contains("&lt;script&gt;"));
    assert!(
        drawings(&page)
            .iter()
            .any(|svg| svg.contains("&lt;script&gt;"))
    );
}

/// Text of a drawing's ticks along one axis: place and number.
fn ticks(document: &Document, anchor: &str, axis: &str) -> Vec<(f64, f64)> {
    let is_ticks = |n: &Node| {
        n.attribute("class") == Some("ticks") && n.attribute("text-anchor") == Some(anchor)
    };
    let group = document.descendants().find(is_ticks).unwrap();
    let number = |n: Node| {
        let place = n.attribute(axis).unwrap().parse().unwrap();
        (place, n.text().unwrap().parse().unwrap())
    };
    group
        .children()
        .filter(Node::is_element)
        .map(number)
        .collect()
}

/// From places in the drawing back to numbers, by two of its ticks.
fn inverse(ticks: &[(f64, f64)]) -> impl Fn(f64) -> f64 + use<> {
    let (first, last) = (ticks[0], ticks[ticks.len() - 1]);
    move |place| {
        let share = (place - first.0) / (last.0 - first.0);
        first.1 + share * (last.1 - first.1)
    }
}

fn drawing_with(page: &str, id: &str) -> String {
    let mark = format!("aria-labelledby=\"{id}-t ");
    drawings(page)
        .into_iter()
        .find(|svg| svg.contains(&mark))
        .unwrap()
}

#[test]
fn lines_are_where_the_numbers_are() {
    let report = report();
    let json = serde_json::to_value(&report).unwrap();
    let page = page(&report);
    let svg = drawing_with(&page, "w0-by-epochs");
    let document = Document::parse(&svg).unwrap();
    // Numbers stand four units below the middle of their line.
    let ys: Vec<_> = ticks(&document, "end", "y")
        .into_iter()
        .map(|(y, v)| (y - 4.0, v))
        .collect();
    let (x, y) = (inverse(&ticks(&document, "middle", "x")), inverse(&ys));
    let mut seen = 0;
    for line in document
        .descendants()
        .filter(|n| n.attribute("class") == Some("line"))
    {
        let name = line.first_element_child().unwrap().text().unwrap();
        let curves = json["workloads"][0]["curves"].as_array().unwrap();
        let curve = curves.iter().find(|c| c["optimizer"] == name).unwrap();
        let path = line.attribute("d").unwrap().trim_start_matches('M');
        for (place, point) in path.split('L').zip(curve["points"].as_array().unwrap()) {
            let (px, py) = place.split_once(' ').unwrap();
            let (px, py): (f64, f64) = (px.parse().unwrap(), py.parse().unwrap());
            let wanted = 100.0 * point["validation"]["mean"].as_f64().unwrap();
            assert!(
                (x(px) - point["epoch"].as_f64().unwrap()).abs() < 0.01,
                "{name}"
            );
            assert!(
                (y(py) - wanted).abs() < 0.1,
                "{name}: {} for {wanted}",
                y(py)
            );
            seen += 1;
        }
    }
    assert_eq!(seen, 4, "two epochs of two optimizers");
}

#[test]
fn intervals_are_where_the_numbers_are() {
    let mut report = report();
    let difference = &mut report.workloads[0].comparisons[0].differences[0];
    difference.paired.ci95 = Some((0.05, 0.2));
    let page = page(&report);
    let svg = drawing_with(&page, "w0-minus-0");
    let document = Document::parse(&svg).unwrap();
    let x = inverse(&ticks(&document, "middle", "x"));
    let interval = document
        .descendants()
        .find(|n| n.attribute("class") == Some("interval"));
    let path = interval.unwrap().attribute("d").unwrap();
    let (low, rest) = path.trim_start_matches('M').split_once(' ').unwrap();
    let high = rest.split_once('H').unwrap().1;
    assert!((x(low.parse().unwrap()) - 5.0).abs() < 0.1);
    assert!((x(high.parse().unwrap()) - 20.0).abs() < 0.1);
}

#[test]
fn tables_say_what_the_json_says() {
    let report = report();
    let page = page(&report);
    let json = serde_json::to_value(&report).unwrap();
    let workload = &json["workloads"][0];
    for row in workload["rows"].as_array().unwrap() {
        let test = row["test"]["mean"].as_f64().unwrap();
        let sd = row["test"]["sd"].as_f64().unwrap();
        let cell = format!("<td>{:.2} ± {:.2}</td>", 100.0 * test, 100.0 * sd);
        assert!(page.contains(&cell), "{cell}");
    }
    let difference = &workload["comparisons"][0]["differences"][0];
    let mean = 100.0 * difference["mean"].as_f64().unwrap();
    assert!(page.contains(&format!("<td>{mean:+.2}</td>")), "{mean}");
    assert!(page.contains("Better than sgd: sala"));
}

#[test]
fn a_report_without_epochs_or_pairs_is_a_page_all_the_same() {
    let page = page(&report_of(|workload| {
        workload.curves.clear();
        workload.views.clear();
        workload.comparisons.clear();
        workload.target = None;
        workload.complete = false;
    }));
    assert!(page.contains("not all runs are complete"));
    let figures = drawings(&page)
        .into_iter()
        .filter(|svg| svg.contains("role=\"img\""));
    assert_eq!(figures.count(), 2, "scores against cost");
}

/// Custom properties of the first rule after `mark` in the style sheet.
fn colours(mark: &str) -> BTreeMap<&'static str, [f64; 3]> {
    let rule = STYLE.split_once(mark).unwrap().1.split('}').next().unwrap();
    let property = |line: &'static str| {
        let (name, value) = line.trim().trim_end_matches(';').split_once(": #")?;
        let part = |i: usize| u8::from_str_radix(value.get(i..i + 2)?, 16).ok();
        Some((name, [part(0)?, part(2)?, part(4)?].map(f64::from)))
    };
    rule.lines().filter_map(property).collect()
}

/// Contrast of two colours, by WCAG 2.2.
fn contrast(one: [f64; 3], other: [f64; 3]) -> f64 {
    let luminance = |colour: [f64; 3]| {
        let linear = colour.map(|c| match c / 255.0 {
            c if c <= 0.04045 => c / 12.92,
            c => ((c + 0.055) / 1.055).powf(2.4),
        });
        0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    };
    let (a, b) = (luminance(one), luminance(other));
    (a.max(b) + 0.05) / (a.min(b) + 0.05)
}

#[test]
fn colours_can_be_told_from_the_page_in_light_and_dark() {
    for mark in [
        "color-scheme: light dark;",
        "(prefers-color-scheme: dark) {\n  :root {",
    ] {
        let colours = colours(mark);
        for page in ["--page", "--raised"] {
            for text in ["--text", "--soft", "--link"] {
                let contrast = contrast(colours[text], colours[page]);
                assert!(contrast >= 4.5, "{mark} {text} on {page}: {contrast}");
            }
        }
        for number in 0..super::super::plot::COLOURS {
            let name = format!("--s{number}");
            let contrast = contrast(colours[name.as_str()], colours["--page"]);
            assert!(contrast >= 3.0, "{mark} {name}: {contrast}");
        }
    }
}

#[test]
fn measured_sharpness_is_shown_with_its_caveat_and_its_pictures() {
    let table = crate::sharpness::example();
    let caveat = table.caveat.clone();
    let drawings = vec!["<svg fill=\"#abc\" width=\"100%\"/>".to_owned()];
    let page = page(&report_of(|w| {
        w.sharpness = vec![Saved { table, drawings }];
    }));
    assert!(page.contains("λ_max") && page.contains(&caveat));
    let pictures = attributes(&page, "src");
    let wanted = "data:image/svg+xml;charset=utf-8,&lt;svg fill=&quot;%23abc&quot; width=&quot;100%25&quot;/&gt;";
    assert_eq!(pictures, [wanted]);
    assert_eq!(attributes(&page, "alt"), ["Densities"]);
}

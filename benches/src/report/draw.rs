//! Charts as SVG. Pure. Lengths are in pixels at full size.
//!
//! A panel is [`WIDTH`] wide, which a telephone shows whole and a desk shows two or
//! three of beside each other; from the left it has names, marks and two columns of
//! figures. Where a name needs more room than a third, names stand above the marks.
//! Colours are classes, which the style sheets define.

use super::chart::{Chart, Colour, Group, Mark, Panel, Row, Scale, short, with_whiskers};
use super::markup::{Markup, width, wrap, wrap_at_most};

/// Of a panel.
pub(super) const WIDTH: f64 = 420.0;

/// Size of text.
const TEXT: f64 = 12.0;
const SMALL: f64 = 10.5;
/// How much wider bold letters are.
const BOLD: f64 = 1.12;
const GAP: f64 = 8.0;
const LINE: f64 = 16.0;
const ROW: f64 = 17.0;
const BAR: f64 = 11.0;
/// Greatest radius of a point.
const POINT: f64 = 5.0;
/// Between groups.
const APART: f64 = 9.0;
/// Widest name that has a column.
const NAMES: f64 = 150.0;
/// Of a picture: margins, and the space between panels.
const MARGIN: f64 = 20.0;

/// Where things stand in all panels of a chart.
struct Layout {
    /// Left end of the marks, and right end.
    left: f64,
    right: f64,
    /// Right ends of the two columns.
    columns: [f64; 2],
    /// Names above the marks.
    above: bool,
}

impl Layout {
    fn of(chart: &Chart) -> Self {
        let rows = || chart.panels.iter().flat_map(|p| &p.groups).flat_map(|group| &group.rows);
        let widest = |column: usize| {
            let headings = chart.panels.iter().map(|panel| width(panel.headings[column], SMALL));
            let texts = rows().map(|row| width(&row.columns[column], TEXT));
            headings.chain(texts).fold(0.0, f64::max)
        };
        let columns = [WIDTH - widest(1) - GAP, WIDTH];
        let right = columns[0] - widest(0) - GAP;
        let names = rows().map(|row| width(&row.name, TEXT) * BOLD).fold(0.0, f64::max);
        let above = names > NAMES;
        Self { left: if above { 0.0 } else { names + GAP }, right, columns, above }
    }

    /// Place of a value.
    fn place(&self, value: f64, ruler: Ruler) -> f64 {
        let part = match ruler {
            Ruler::Linear { most } => value / most,
            Ruler::Log { least, most } => (value / least).ln() / (most / least).ln(),
        };
        // Points stand on logarithmic scales, and have a size.
        let inset = if matches!(ruler, Ruler::Log { .. }) { POINT + 1.0 } else { 0.0 };
        // A zero has no place on a logarithmic scale: it is put at its left end.
        let part = if part.is_finite() { part.clamp(0.0, 1.0) } else { 0.0 };
        self.left + inset + part * (self.right - self.left - 2.0 * inset)
    }
}

/// The scale of one group.
#[derive(Debug, Clone, Copy)]
enum Ruler {
    Linear { most: f64 },
    Log { least: f64, most: f64 },
}

impl Ruler {
    fn of(scale: Scale, group: &Group) -> Self {
        match scale {
            Scale::Linear { most } => Self::Linear { most },
            Scale::Log { least, most } => Self::Log { least, most },
            Scale::Each => {
                let ranges = group.rows.iter().filter_map(|row| match &row.mark {
                    Mark::Bar(range) => Some(*range),
                    Mark::Point(_) | Mark::Points(_) | Mark::Failed(_) => None,
                });
                let longest = ranges.clone().map(|range| range.median).fold(0.0, f64::max);
                let most = with_whiskers(longest, ranges);
                Self::Linear { most: if most > 0.0 { most } else { 1.0 } }
            }
        }
    }

    fn of_panel(scale: Scale) -> Option<Self> {
        match scale {
            Scale::Linear { most } => Some(Self::Linear { most }),
            Scale::Log { least, most } => Some(Self::Log { least, most }),
            Scale::Each => None,
        }
    }
}

/// The panels of a chart, each an SVG element for an HTML page.
pub(super) fn panels(chart: &Chart) -> Vec<String> {
    let layout = Layout::of(chart);
    let panels = chart.panels.iter().map(|panel| {
        let (inside, height) = draw(panel, &layout);
        let label = match &panel.title {
            Some(title) => format!("{}: {title}; the figures are in the tables", chart.title),
            None => format!("{}; the figures are in the tables", chart.title),
        };
        let mut svg = Markup::default();
        svg.within(
            "svg",
            &[
                ("class", &"panel"),
                ("viewBox", &format!("0 0 {WIDTH} {}", number(height))),
                ("role", &"img"),
                ("aria-label", &label),
            ],
            |svg| svg.markup(&inside),
        );
        svg.finish()
    });
    panels.collect()
}

/// A chart as a picture of its own, in two columns of panels.
pub(super) fn picture(chart: &Chart, heading: &str, footnote: &str, style: &str) -> String {
    let layout = Layout::of(chart);
    let drawn: Vec<_> = chart.panels.iter().map(|panel| draw(panel, &layout)).collect();
    let columns = drawn.len().clamp(1, 2);
    let whole = columns as f64 * (WIDTH + 2.0 * MARGIN);
    let room = whole - 2.0 * MARGIN;
    let mut y = MARGIN;
    let mut inside = Markup::default();
    for (text, class, size, bold) in
        [(heading, "p", 17.0, BOLD), (chart.caption.as_str(), "m", TEXT, 1.0)]
    {
        for line in wrap(text, size * bold, room) {
            y += size;
            write(&mut inside, class, MARGIN, y, size, "start", &line);
            y += size * 0.35;
        }
    }
    y += GAP;
    let mut bottoms = vec![y; columns];
    for (at, (panel, height)) in drawn.iter().enumerate() {
        // In turn, so that the order is that of reading.
        let column = at % columns;
        let top = if column == 0 { bottoms.iter().copied().fold(0.0, f64::max) } else { y };
        y = top;
        let x = MARGIN + column as f64 * (WIDTH + 2.0 * MARGIN);
        let place = format!("translate({} {})", number(x), number(top));
        inside.within("g", &[("transform", &place)], |g| g.markup(panel));
        bottoms[column] = top + height + GAP;
    }
    y = bottoms.iter().copied().fold(0.0, f64::max);
    for line in wrap(footnote, SMALL, room) {
        y += SMALL;
        write(&mut inside, "m", MARGIN, y, SMALL, "start", &line);
        y += SMALL * 0.35;
    }
    let height = y + MARGIN;
    let mut svg = Markup::default();
    svg.within(
        "svg",
        &[
            ("xmlns", &"http://www.w3.org/2000/svg"),
            ("viewBox", &format!("0 0 {} {}", number(whole), number(height))),
            ("width", &number(whole)),
            ("height", &number(height)),
            ("role", &"img"),
        ],
        |svg| {
            svg.element("title", &[], heading);
            svg.element("style", &[], style);
            svg.empty("rect", &[("class", &"paper"), ("width", &"100%"), ("height", &"100%")]);
            svg.markup(&inside.finish());
        },
    );
    svg.finish()
}

/// A panel's content and height.
fn draw(panel: &Panel, layout: &Layout) -> (String, f64) {
    let mut svg = Markup::default();
    let mut y = 0.0;
    if let Some(title) = &panel.title {
        for line in wrap(title, TEXT * BOLD * 1.1, WIDTH) {
            y += LINE;
            write(&mut svg, "p", 0.0, y - 3.0, TEXT * 1.1, "start", &line);
        }
    }
    if panel.groups.iter().any(|group| !group.rows.is_empty()) {
        y += LINE;
        for (heading, right) in panel.headings.iter().zip(layout.columns) {
            write(&mut svg, "m", right, y - 4.0, SMALL, "end", heading);
        }
    }
    let top = y;
    // Behind everything, but known only when the height is.
    let mut marks = Markup::default();
    for (at, group) in panel.groups.iter().enumerate() {
        y += if at > 0 { APART } else { 0.0 };
        y = draw_group(&mut marks, group, panel.scale, layout, y);
    }
    let ruler = Ruler::of_panel(panel.scale);
    if let Some(ruler) = ruler.filter(|_| panel.groups.iter().any(|g| !g.rows.is_empty())) {
        axis(&mut svg, ruler, layout, top, y);
        y += 18.0;
    }
    svg.markup(&marks.finish());
    (svg.finish(), y + 4.0)
}

/// Lines down the panel, and what they mean below.
fn axis(svg: &mut Markup, ruler: Ruler, layout: &Layout, top: f64, bottom: f64) {
    let mut end = f64::NEG_INFINITY;
    for tick in ticks(ruler) {
        let x = layout.place(tick, ruler);
        let is_one = tick == 1.0 && matches!(ruler, Ruler::Log { .. });
        let class = if is_one { "one" } else { "grid" };
        let (x1, y1, y2) = (number(x), number(top), number(bottom + 4.0));
        svg.empty("line", &[("class", &class), ("x1", &x1), ("x2", &x1), ("y1", &y1), ("y2", &y2)]);
        let text = round(tick);
        let half = width(&text, SMALL) / 2.0;
        let middle = x.clamp(half, WIDTH - half);
        if middle - half > end + GAP {
            write(svg, "m", middle, bottom + 15.0, SMALL, "middle", &text);
            end = middle + half;
        }
    }
}

fn draw_group(svg: &mut Markup, group: &Group, scale: Scale, layout: &Layout, top: f64) -> f64 {
    let mut y = top;
    if let Some(title) = &group.title {
        for line in wrap_at_most(title, TEXT * BOLD, WIDTH, 3) {
            y += LINE;
            write(svg, "g", 0.0, y - 4.0, TEXT, "start", &line);
        }
    }
    if let Some(instead) = &group.instead {
        for line in wrap_at_most(instead, TEXT, WIDTH, 4) {
            y += LINE;
            write(svg, "bad", 0.0, y - 4.0, TEXT, "start", &line);
        }
    }
    let ruler = Ruler::of(scale, group);
    for row in &group.rows {
        y = draw_row(svg, row, ruler, layout, y);
    }
    y
}

fn draw_row(svg: &mut Markup, row: &Row, ruler: Ruler, layout: &Layout, top: f64) -> f64 {
    let mut y = top;
    let own = if matches!(row.colour, Colour::Ours(_)) { "n ours" } else { "n" };
    if layout.above {
        let line = wrap_at_most(&row.name, TEXT * BOLD, WIDTH, 1);
        y += LINE;
        write(svg, own, 0.0, y - 3.0, TEXT, "start", line.first().map_or("", String::as_str));
    } else {
        write(svg, own, 0.0, y + ROW - 4.5, TEXT, "start", &row.name);
    }
    let middle = y + ROW / 2.0;
    let x = |value: f64| layout.place(value, ruler);
    match &row.mark {
        Mark::Bar(range) => {
            let end = x(range.median);
            let bar = [
                ("class", class(row.colour)),
                ("x", number(layout.left)),
                ("y", number(middle - BAR / 2.0)),
                ("width", number((end - layout.left).max(0.5))),
                ("height", number(BAR)),
            ];
            svg.empty("rect", &bar.each_ref().map(|(name, value)| (*name, value as _)));
            whisker(svg, x(range.min), x(range.max), middle, range.min != range.max);
            if matches!(ruler, Ruler::Linear { most } if range.max > most) {
                let tip =
                    format!("M{} {}l4 3.5l-4 3.5z", number(layout.right), number(middle - 3.5));
                svg.empty("path", &[("class", &"tip"), ("d", &tip)]);
            }
        }
        Mark::Point(range) => {
            whisker(svg, x(range.min), x(range.max), middle, range.min != range.max);
            point(svg, row.colour, x(range.median), middle, POINT);
        }
        Mark::Points(points) => {
            if let (Some(first), Some(last)) = (points.first(), points.last()) {
                whisker(svg, x(*first), x(*last), middle, false);
            }
            for (at, value) in points.iter().enumerate() {
                point(svg, row.colour, x(*value), middle, [POINT, 4.0, 3.0][at.min(2)]);
            }
        }
        Mark::Failed(word) => {
            let text = format!("✕ {word}");
            write(svg, "bad", layout.left, middle + 4.0, TEXT, "start", &text);
        }
    }
    for (text, right) in row.columns.iter().zip(layout.columns) {
        if !text.is_empty() {
            write(svg, "v", right, middle + 4.0, TEXT, "end", text);
        }
    }
    y + ROW
}

fn whisker(svg: &mut Markup, from: f64, to: f64, middle: f64, caps: bool) {
    let mut path = format!("M{} {}H{}", number(from), number(middle), number(to));
    if caps {
        for end in [from, to] {
            path.push_str(&format!("M{} {}v6", number(end), number(middle - 3.0)));
        }
    }
    svg.empty("path", &[("class", &"w"), ("d", &path)]);
}

fn point(svg: &mut Markup, colour: Colour, x: f64, y: f64, radius: f64) {
    let place =
        [("class", class(colour)), ("cx", number(x)), ("cy", number(y)), ("r", number(radius))];
    svg.empty("circle", &place.each_ref().map(|(name, value)| (*name, value as _)));
}

/// Class of a mark.
pub(super) fn class(colour: Colour) -> String {
    match colour {
        Colour::Ours(at) => format!("o{}", at % 2),
        Colour::Peer(at) => format!("q{}", at % 5),
        Colour::Limit => "limit".to_owned(),
    }
}

fn ticks(ruler: Ruler) -> Vec<f64> {
    match ruler {
        Ruler::Linear { most } => {
            let rough = most / 3.0;
            let power = 10f64.powf(rough.log10().floor());
            let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|step| step * power);
            let step = step.into_iter().find(|step| *step >= rough).unwrap_or(rough);
            (0..=(most / step * 1.000_001) as u32).map(|at| f64::from(at) * step).collect()
        }
        Ruler::Log { least, most } => {
            let decades = (most / least).log10();
            let steps: &[f64] = if decades < 2.5 { &[1.0, 2.0, 5.0] } else { &[1.0] };
            let every = (decades / 6.0).ceil().max(1.0) as i32;
            let first = least.log10().floor() as i32;
            (first..=most.log10().ceil() as i32)
                .filter(|power| power % every == 0)
                .flat_map(|power| steps.iter().map(move |step| step * 10f64.powi(power)))
                .filter(|tick| (least * 0.999..=most * 1.001).contains(tick))
                .collect()
        }
    }
}

/// A round figure, without the zeros that say how exact a measured one is.
fn round(value: f64) -> String {
    let text = short(value);
    if !text.contains('.') || text.contains('e') {
        return text;
    }
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn write(svg: &mut Markup, class: &str, x: f64, y: f64, size: f64, anchor: &str, text: &str) {
    svg.element(
        "text",
        &[
            ("class", &class),
            ("x", &number(x)),
            ("y", &number(y)),
            ("font-size", &size),
            ("text-anchor", &anchor),
        ],
        text,
    );
    svg.markup("\n");
}

/// A length with one digit after the point: enough, and short.
fn number(value: f64) -> String {
    let rounded = (value * 10.0).round() / 10.0;
    // No minus zero.
    format!("{}", rounded + 0.0)
}

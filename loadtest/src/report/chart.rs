//! Line and bar charts as inline SVG. Colours are classes of the page's style sheet, so that they follow the reader's theme; the
//! points are in the page as data for the pointer's read-out.

use std::fmt::Write;

use super::format::escape;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 30.0;
/// Points one series is drawn with; of more, every n-th span's highest is drawn, so that no peak is lost.
const POINTS_MAX: usize = 600;
/// Series that get a colour of their own.
pub const SERIES_MAX: usize = 8;

/// How values become positions.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Scale {
    /// Even steps from 0.
    Linear,
    /// Even steps for each factor of ten; values must be above 0.
    Log,
    /// 1/(1-p) on a log scale, labelled with the percentile p.
    Percentile,
}

/// One line, or one part of stacked bars.
#[derive(Clone, Debug)]
pub struct Series {
    /// In the legend.
    pub name: String,
    /// x ascending.
    pub points: Vec<(f64, f64)>,
    /// Drawn dashed: a target, or what would hide another line.
    pub dashed: bool,
}

impl Series {
    /// A solid line.
    pub fn new(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Series { name: name.into(), points, dashed: false }
    }
}

/// Lines or stacked bars.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mark {
    /// A line for each series.
    Lines,
    /// A bar for each x, the series on top of each other.
    StackedBars,
}

/// A chart.
pub struct Chart<'a> {
    /// What it shows.
    pub title: &'a str,
    /// What lies on the x axis, with unit.
    pub x_title: &'a str,
    /// x positions.
    pub x_scale: Scale,
    /// y positions.
    pub y_scale: Scale,
    /// Lines or bars.
    pub mark: Mark,
    /// x values as text.
    pub x_label: &'a dyn Fn(f64) -> String,
    /// y values as text.
    pub y_label: &'a dyn Fn(f64) -> String,
    /// At most [`SERIES_MAX`]; further ones are not drawn.
    pub series: Vec<Series>,
    /// y that must be in the picture even if nothing reaches it.
    pub y_at_least: f64,
}

impl Chart<'_> {
    /// A `figure`; empty text when there is no point to show.
    pub fn figure(&self) -> String {
        let series: Vec<Series> = self.series.iter().take(SERIES_MAX).map(|series| self.thinned(series)).collect();
        let Some(frame) = Frame::around(self, &series) else { return String::new() };
        let mut svg = String::new();
        self.grid(&mut svg, &frame);
        match self.mark {
            Mark::Lines => lines(&mut svg, &frame, &series),
            Mark::StackedBars => bars(&mut svg, &frame, &series),
        }
        let legend: String = series
            .iter()
            .enumerate()
            .map(|(index, series)| {
                let kind = if series.dashed { " dashed" } else { "" };
                format!("<span class=\"key\"><i class=\"swatch c{index}{kind}\"></i>{}</span>", escape(&series.name))
            })
            .collect();
        let legend = if series.len() > 1 || self.mark == Mark::StackedBars {
            format!("<div class=\"legend\">{legend}</div>")
        } else {
            String::new()
        };
        format!(
            "<figure class=\"chart\" data-points=\"{data}\"><figcaption>{title}</figcaption>{legend}<div class=\"plot\">\
             <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">{svg}<line class=\"cursor\" y1=\"{TOP}\" y2=\"{bottom}\"/></svg>\
             <div class=\"tip\" hidden></div></div></figure>\n",
            title = escape(self.title),
            bottom = HEIGHT - BOTTOM,
            data = escape(&self.data(&frame, &series)),
        )
    }

    /// For each series its name and its points: x in the picture, x and y as text.
    fn data(&self, frame: &Frame, series: &[Series]) -> String {
        let data: Vec<_> = series
            .iter()
            .map(|series| {
                let points: Vec<_> = series
                    .points
                    .iter()
                    .map(|&(x, y)| ((frame.x(x) * 10.0).round() / 10.0, (self.x_label)(x), (self.y_label)(y)))
                    .collect();
                serde_json::json!({ "name": series.name, "points": points })
            })
            .collect();
        serde_json::to_string(&data).expect("names and numbers are plain data")
    }

    fn thinned(&self, series: &Series) -> Series {
        let span = series.points.len().div_ceil(POINTS_MAX).max(1);
        let drawable = |&(x, y): &(f64, f64)| {
            x.is_finite() && y.is_finite() && (self.x_scale == Scale::Linear || x > 0.0) && (self.y_scale == Scale::Linear || y > 0.0)
        };
        let points = series
            .points
            .chunks(span)
            .filter_map(|chunk| chunk.iter().copied().filter(drawable).max_by(|a, b| a.1.total_cmp(&b.1)))
            .collect();
        Series { points, ..series.clone() }
    }

    fn grid(&self, svg: &mut String, frame: &Frame) {
        for y in ticks(self.y_scale, frame.y_min, frame.y_max) {
            let at = frame.y(y);
            write!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/><text class=\"tick\" text-anchor=\"end\" x=\"{}\" y=\"{:.1}\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                at + 4.0,
                escape(&short((self.y_label)(y)))
            )
            .expect("a string takes all");
        }
        let bottom = HEIGHT - BOTTOM;
        for x in ticks(self.x_scale, frame.x_min, frame.x_max) {
            let at = frame.x(x);
            write!(
                svg,
                "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{bottom}\" y2=\"{}\"/><text class=\"tick\" text-anchor=\"middle\" x=\"{at:.1}\" y=\"{}\">{}</text>",
                bottom + 4.0,
                bottom + 16.0,
                escape(&short((self.x_label)(x)))
            )
            .expect("a string takes all");
        }
        write!(
            svg,
            "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{bottom}\" y2=\"{bottom}\"/><text class=\"tick axis-title\" text-anchor=\"end\" x=\"{right}\" y=\"{}\">{}</text>",
            HEIGHT - 2.0,
            escape(self.x_title),
            right = WIDTH - RIGHT,
        )
        .expect("a string takes all");
    }
}

/// The picture's ranges.
struct Frame {
    x_scale: Scale,
    y_scale: Scale,
    x_min: f64,
    x_max: f64,
    y_min: f64,
    y_max: f64,
}

impl Frame {
    fn around(chart: &Chart<'_>, series: &[Series]) -> Option<Frame> {
        let xs = || series.iter().flat_map(|series| series.points.iter().map(|point| point.0));
        let (x_low, x_high) = (xs().reduce(f64::min)?, xs().reduce(f64::max)?);
        let (mut y_low, mut y_high) = match chart.mark {
            Mark::Lines => {
                let ys = || series.iter().flat_map(|series| series.points.iter().map(|point| point.1));
                (ys().reduce(f64::min)?, ys().reduce(f64::max)?)
            }
            Mark::StackedBars => (0.0, stack_heights(series).into_iter().reduce(f64::max)?),
        };
        y_high = y_high.max(chart.y_at_least);
        match chart.y_scale {
            Scale::Linear => (y_low, y_high) = (0.0, nice_above(y_high)),
            Scale::Log | Scale::Percentile => {
                // Whole halves of a decade, and at least one of them.
                y_low = 10_f64.powf((y_low.log10() * 2.0).floor() / 2.0);
                y_high = 10_f64.powf((y_high.log10() * 2.0).ceil() / 2.0).max(y_low * 10_f64.sqrt());
            }
        }
        let (x_min, x_max) = match chart.x_scale {
            Scale::Linear => (x_low.min(0.0), if x_high > x_low { x_high } else { x_low + 1.0 }),
            Scale::Log | Scale::Percentile => (x_low, x_high.max(x_low * 10.0)),
        };
        Some(Frame { x_scale: chart.x_scale, y_scale: chart.y_scale, x_min, x_max, y_min: y_low, y_max: y_high })
    }

    fn x(&self, x: f64) -> f64 {
        LEFT + share(self.x_scale, self.x_min, self.x_max, x) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, y: f64) -> f64 {
        HEIGHT - BOTTOM - share(self.y_scale, self.y_min, self.y_max, y) * (HEIGHT - TOP - BOTTOM)
    }
}

fn share(scale: Scale, min: f64, max: f64, value: f64) -> f64 {
    let share = match scale {
        Scale::Linear => (value - min) / (max - min),
        Scale::Log | Scale::Percentile => (value / min).log10() / (max / min).log10(),
    };
    share.clamp(0.0, 1.0)
}

/// Positions of labels.
fn ticks(scale: Scale, min: f64, max: f64) -> Vec<f64> {
    match scale {
        Scale::Linear => {
            let step = nice_above((max - min) / 6.0).max(f64::MIN_POSITIVE);
            (0..=12).map(|n| (min / step).ceil() * step + f64::from(n) * step).filter(|&tick| tick <= max * 1.000001).collect()
        }
        Scale::Log => {
            let decades = (max / min).log10();
            let within: &[f64] = if decades <= 2.0 { &[1.0, 2.0, 5.0] } else { &[1.0] };
            let (from, to) = (min.log10().floor() as i32, max.log10().ceil() as i32);
            let all = (from..=to).flat_map(|power| within.iter().map(move |factor| factor * 10_f64.powi(power)));
            all.filter(|&tick| tick >= min * 0.999 && tick <= max * 1.001).collect()
        }
        Scale::Percentile => (0..10).map(|power| 10_f64.powi(power)).filter(|&tick| tick >= min * 0.999 && tick <= max * 1.001).collect(),
    }
}

/// A label without zeros that say nothing: `10.0 ms` is `10 ms`.
fn short(label: String) -> String {
    let (figure, unit) = label.split_once(' ').map_or((label.as_str(), None), |(figure, unit)| (figure, Some(unit)));
    let figure = if figure.contains('.') { figure.trim_end_matches('0').trim_end_matches('.') } else { figure };
    unit.map_or_else(|| figure.to_owned(), |unit| format!("{figure} {unit}"))
}

/// The next of 1, 2, 5 times a power of ten.
fn nice_above(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(value.log10().floor());
    [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|&nice| nice >= value * 0.999999).unwrap_or(power * 10.0)
}

fn lines(svg: &mut String, frame: &Frame, series: &[Series]) {
    for (index, series) in series.iter().enumerate() {
        let points: Vec<String> = series.points.iter().map(|&(x, y)| format!("{:.1},{:.1}", frame.x(x), frame.y(y))).collect();
        let kind = if series.dashed { " dashed" } else { "" };
        match points.as_slice() {
            [] => Ok(()),
            // A line of one point would not be seen.
            [one] => {
                let (x, y) = one.split_once(',').unwrap_or_default();
                write!(svg, "<circle class=\"dot c{index}\" cx=\"{x}\" cy=\"{y}\" r=\"4\"/>")
            }
            points => write!(svg, "<polyline class=\"line c{index}{kind}\" points=\"{}\"/>", points.join(" ")),
        }
        .expect("a string takes all");
    }
}

fn bars(svg: &mut String, frame: &Frame, series: &[Series]) {
    let count = series.iter().map(|series| series.points.len()).max().unwrap_or(0).max(1);
    let width = ((WIDTH - LEFT - RIGHT) / count as f64 * 0.8).clamp(1.0, 24.0);
    let mut below = vec![0.0; count];
    for (index, series) in series.iter().enumerate() {
        for (&(x, y), below) in series.points.iter().zip(&mut below) {
            let (low, high) = (frame.y(*below), frame.y(*below + y));
            *below += y;
            if low - high > 0.0 {
                let left = (frame.x(x) - width / 2.0).clamp(LEFT, WIDTH - RIGHT - width);
                write!(
                    svg,
                    "<rect class=\"bar c{index}\" x=\"{left:.1}\" y=\"{high:.1}\" width=\"{width:.1}\" height=\"{:.1}\"/>",
                    low - high
                )
                .expect("a string takes all");
            }
        }
    }
}

fn stack_heights(series: &[Series]) -> Vec<f64> {
    let count = series.iter().map(|series| series.points.len()).max().unwrap_or(0);
    (0..count).map(|index| series.iter().filter_map(|series| Some(series.points.get(index)?.1)).sum()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::format::number;

    fn chart(scale: Scale, points: Vec<(f64, f64)>) -> String {
        Chart {
            title: "a <title>",
            x_title: "s",
            x_scale: Scale::Linear,
            y_scale: scale,
            mark: Mark::Lines,
            x_label: &number,
            y_label: &number,
            series: vec![Series::new("one & two", points)],
            y_at_least: 0.0,
        }
        .figure()
    }

    #[test]
    fn every_position_is_inside_the_picture_whatever_the_values() {
        for scale in [Scale::Linear, Scale::Log] {
            for points in [
                vec![(0.0, 5.0)],
                vec![(0.0, 0.0), (1.0, 0.0)],
                vec![(0.0, f64::NAN), (1.0, -3.0), (2.0, f64::INFINITY), (3.0, 7.0)],
                vec![(0.0, 1e-9), (1e9, 1e18)],
                (0..10_000).map(|n| (f64::from(n), f64::from(n % 997))).collect(),
            ] {
                let text = chart(scale, points);
                assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
                assert!(!text.contains("<title>") && text.len() < 120_000, "{}", text.len());
            }
        }
        assert_eq!(chart(Scale::Linear, vec![]), "");
    }

    #[test]
    fn thinning_keeps_the_peak() {
        let mut points: Vec<(f64, f64)> = (0..50_000).map(|n| (f64::from(n), 1.0)).collect();
        points[31_234].1 = 900.0;
        assert!(chart(Scale::Linear, points).contains("900"));
    }

    #[test]
    fn ticks_are_few_and_round() {
        assert_eq!(["10.0 ms", "2.50", "100", "99.90 %"].map(|label| short(label.to_owned())), ["10 ms", "2.5", "100", "99.9 %"]);
        assert_eq!(ticks(Scale::Linear, 0.0, 100.0), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!(ticks(Scale::Log, 1.0, 10_000.0), [1.0, 10.0, 100.0, 1000.0, 10_000.0]);
        assert_eq!(ticks(Scale::Percentile, 1.0, 5000.0), [1.0, 10.0, 100.0, 1000.0]);
        assert!(ticks(Scale::Linear, 0.0, 3.7).len() <= 8);
    }
}

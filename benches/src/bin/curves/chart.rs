//! A chart, drawn as SVG: lines with whiskers, and a name at the end of each line.

use crate::series::{Series, Spread};
use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::coord::combinators::BindKeyPoints;
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;

const SIZE: (u32, u32) = (720, 360);
/// Width reserved at the right for the names of lines.
const NAMES: i32 = 150;
const FONT: &str = "sans-serif";
/// Colours that people with colour blindness can tell apart (Okabe and Ito).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 0, 0),
    RGBColor(213, 94, 0),
    RGBColor(0, 114, 178),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(120, 120, 120),
];

/// Scale of the vertical axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Linear, from zero.
    Linear,
    /// Logarithmic: powers of ten.
    Log,
}

/// A chart.
#[derive(Clone, Debug)]
pub struct Chart {
    /// Name of the file, without extension.
    pub name: &'static str,
    pub title: &'static str,
    /// Label of the horizontal axis: the quantity that grows.
    pub across: &'static str,
    /// Label of the vertical axis: the measured quantity.
    pub up: &'static str,
    pub scale: Scale,
    pub lines: Vec<Series>,
}

impl Chart {
    /// Whether the chart has points to draw.
    pub fn has_points(&self) -> bool {
        self.points().next().is_some()
    }

    fn points(&self) -> impl Iterator<Item = &Spread> {
        self.lines.iter().flat_map(|line| &line.points)
    }

    /// Returns the chart as SVG.
    pub fn draw(&self) -> Result<String> {
        let mut text = String::new();
        {
            let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
            self.draw_on(&area)?;
            area.present()?;
        }
        Ok(text)
    }

    fn draw_on(&self, area: &DrawingArea<SVGBackend<'_>, Shift>) -> Result<()> {
        let (first, last) = range(self.points().map(|p| p.x));
        let (least, _) = range(self.points().map(|p| p.least).filter(|&y| y > 0.0));
        let (_, most) = range(self.points().map(|p| p.most));
        let mut places: Vec<f64> = self.points().map(|p| p.x).collect();
        places.sort_by(f64::total_cmp);
        places.dedup();
        let across = (first / 1.15..last * 1.15).log_scale().with_key_points(places);
        match self.scale {
            Scale::Linear => self.draw_scaled(area, across, 0.0..most * 1.08),
            Scale::Log => self.draw_scaled(area, across, (least / 1.5..most * 1.5).log_scale()),
        }
    }

    fn draw_scaled<X, Y>(&self, area: &DrawingArea<SVGBackend<'_>, Shift>, across: X, up: Y) -> Result<()>
    where
        X: AsRangedCoord<Value = f64>,
        Y: AsRangedCoord<Value = f64>,
        X::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
        Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        let failed = |error: DrawingAreaErrorKind<std::io::Error>| anyhow!("cannot draw {}: {error}", self.name);
        area.fill(&WHITE)?;
        let mut frame = ChartBuilder::on(area)
            .caption(self.title, (FONT, 18))
            .margin(8)
            .margin_right(NAMES)
            .x_label_area_size(36)
            .y_label_area_size(64)
            .build_cartesian_2d(across, up)
            .map_err(failed)?;
        let label = |value: &f64| short(*value);
        frame
            .configure_mesh()
            .x_desc(self.across)
            .y_desc(self.up)
            .x_labels(8)
            .y_labels(6)
            .x_label_formatter(&label)
            .y_label_formatter(&label)
            .light_line_style(TRANSPARENT)
            .bold_line_style(RGBColor(225, 225, 225))
            .label_style((FONT, 14))
            .axis_desc_style((FONT, 15))
            .draw()
            .map_err(failed)?;
        let mut taken: Vec<i32> = Vec::new();
        for (line, colour) in self.lines.iter().zip(COLOURS) {
            let Some(end) = line.points.last() else { continue };
            frame
                .draw_series(LineSeries::new(line.points.iter().map(|p| (p.x, p.median)), colour.stroke_width(2)))
                .map_err(failed)?;
            let whisker = |p: &Spread| PathElement::new([(p.x, p.least), (p.x, p.most)], colour.stroke_width(1));
            frame.draw_series(line.points.iter().map(whisker)).map_err(failed)?;
            let dot = |p: &Spread| Circle::new((p.x, p.median), 3, colour.filled());
            frame.draw_series(line.points.iter().map(dot)).map_err(failed)?;
            let (x, y) = frame.backend_coord(&(end.x, end.median));
            let y = free_row(&mut taken, y - 7);
            area.draw(&Text::new(line.name, (x + 10, y), (FONT, 15).into_font().color(&colour)))?;
        }
        Ok(())
    }
}

/// Returns the row nearest to `wanted` without another name.
fn free_row(taken: &mut Vec<i32>, wanted: i32) -> i32 {
    const HEIGHT: i32 = 15;
    let is_free = |row: i32| taken.iter().all(|other| (row - other).abs() >= HEIGHT);
    let row = (0..).flat_map(|off| [wanted - off, wanted + off]).find(|&row| is_free(row)).unwrap_or(wanted);
    taken.push(row);
    row
}

fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), value| (least.min(value), most.max(value)))
}

/// Formats 20000 as 20k.
fn short(value: f64) -> String {
    let (divided, suffix) = match value.abs() {
        v if v >= 1e9 => (value / 1e9, "G"),
        v if v >= 1e6 => (value / 1e6, "M"),
        v if v >= 1e3 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    // Three digits are enough, without zeros behind the point.
    format!("{}{suffix}", (divided * 1000.0).round() / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let texts: Vec<String> = [0.0, 0.05, 12.0, 1000.0, 1500.0, 5e7, 2e9].into_iter().map(short).collect();
        assert_eq!(texts, ["0", "0.05", "12", "1k", "1.5k", "50M", "2G"]);
    }

    #[test]
    fn a_chart_names_its_lines_and_nothing_overlaps() {
        let point = |x, y| Spread { x, least: y * 0.9, median: y, most: y * 1.1 };
        let line = |name, y| Series { name, points: vec![point(1.0, y), point(256.0, y)] };
        let lines = vec![line("alone", 50.0), line("heapline", 50.5)];
        for scale in [Scale::Linear, Scale::Log] {
            let lines = lines.clone();
            let chart = Chart { name: "n", title: "Title", across: "threads", up: "ns", scale, lines };
            let svg = chart.draw().expect("drawn");
            for text in ["Title", "threads", "alone", "heapline"] {
                assert!(svg.contains(text), "{text}");
            }
        }
        let mut taken = Vec::new();
        let rows: Vec<i32> = [100, 100, 101].into_iter().map(|row| free_row(&mut taken, row)).collect();
        assert_eq!(rows, [100, 85, 115]);
    }
}

//! Curves as SVG files: one for each group of a backend that has any.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use plotters::prelude::*;

use super::Row;

const SIZE: (u32, u32) = (800, 500);

/// Writes the plots into a folder, which is made if need be, and says which.
pub(in super::super) fn plot(folder: &Path, rows: &[Row]) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let mut groups: Vec<(&str, &'static str)> = Vec::new();
    for row in rows.iter().filter(|row| row.x.is_some() && row.height().is_some()) {
        let group = (row.backend.as_str(), row.group);
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    let mut written = Vec::new();
    for (backend, group) in groups {
        let rows: Vec<&Row> =
            rows.iter().filter(|row| (row.backend.as_str(), row.group) == (backend, group)).collect();
        let path = folder.join(format!("{backend}-{}.svg", group.replace(' ', "-")));
        draw(&path, &format!("{backend}: {group}"), &rows)
            .with_context(|| format!("writing {}", path.display()))?;
        written.push(path);
    }
    Ok(written)
}

/// The curves of a group, in the order of their first points.
fn curves(rows: &[&Row]) -> Vec<(&'static str, Vec<(f64, f64)>)> {
    let mut curves: Vec<(&'static str, Vec<(f64, f64)>)> = Vec::new();
    for row in rows {
        let (Some(name), Some(x), Some(height)) = (row.curve, row.x, row.height()) else { continue };
        match curves.iter_mut().find(|(known, _)| *known == name) {
            Some((_, points)) => points.push((x, height)),
            None => curves.push((name, vec![(x, height)])),
        }
    }
    curves
}

fn draw(path: &Path, title: &str, rows: &[&Row]) -> Result<()> {
    let curves = curves(rows);
    let points = || curves.iter().flat_map(|(_, points)| points.iter().copied());
    let least = |values: &mut dyn Iterator<Item = f64>| values.fold(f64::INFINITY, f64::min);
    let most = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
    let (left, right) = (least(&mut points().map(|p| p.0)), most(&mut points().map(|p| p.0)));
    let (low, high) = (least(&mut points().map(|p| p.1)), most(&mut points().map(|p| p.1)));
    let heights =
        if rows.iter().any(|row| row.is_rate()) { "items a second" } else { "microseconds, median" };

    let failed = |error: DrawingAreaErrorKind<_>| anyhow!("{error:?}");
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE).map_err(failed)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 20))
        .margin(15)
        .x_label_area_size(40)
        .y_label_area_size(80)
        .build_cartesian_2d((left..right.max(left * 1.01)).log_scale(), (low / 1.5..high * 1.5).log_scale())
        .map_err(failed)?;
    chart
        .configure_mesh()
        .x_desc(axis(rows))
        .y_desc(heights)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.3e}"))
        .draw()
        .map_err(failed)?;
    for (at, (name, points)) in curves.iter().enumerate() {
        let color = Palette99::pick(at).to_rgba();
        let line = LineSeries::new(points.iter().copied(), color.stroke_width(2)).point_size(3);
        chart
            .draw_series(line)
            .map_err(failed)?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .draw()
        .map_err(failed)?;
    root.present().map_err(failed)
}

/// What the x axis counts.
fn axis(rows: &[&Row]) -> &'static str {
    match rows.first().map(|row| row.group) {
        Some(super::super::BATCHES) => "items submitted at once",
        Some(super::super::PRODUCERS) => "producer threads",
        _ => "units of work in an item",
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::rate;
    use super::*;

    #[test]
    fn a_plot_has_its_curves_and_leaves_failures_out() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut rows = vec![
            rate("ring 1", 20.0, Some(("ring", 1.0))),
            rate("ring 2", 10.0, Some(("ring", 2.0))),
            rate("queues 1", 40.0, Some(("queues", 1.0))),
            rate("bad 1", 1.0, Some(("bad", 1.0))),
        ];
        if let Some(bad) = rows.last_mut() {
            bad.outcome = super::super::Outcome::Failed { reason: "wrong".to_owned() };
        }
        let written = plot(folder.path(), &rows).expect("plotted");
        let [path] = written.as_slice() else { panic!("one group") };
        let text = std::fs::read_to_string(path).expect("the plot");
        assert!(text.contains("ring") && text.contains("queues") && !text.contains("bad"), "{text}");
        assert!(text.contains("<polyline"), "{text}");
    }
}

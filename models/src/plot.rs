//! Charts as SVG: lines, points and bars in labelled axes.

use plotters::{
    coord::{Shift, types::RangedCoordf64},
    prelude::*,
};

use crate::{Epoch, ModelError};

/// Of one chart, in pixels.
const SIZE: (u32, u32) = (560, 420);
const FONT: &str = "sans-serif";
/// Colours that most colour-blind people can tell apart (Okabe, Ito 2008), in the order of the series.
const COLOURS: [RGBColor; 5] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
];
const GREY: RGBColor = RGBColor(120, 120, 120);

/// One chart.
#[derive(Clone, Debug)]
pub struct Chart {
    pub title: String,
    pub x: Axis,
    pub y: Axis,
    pub series: Vec<Series>,
    /// Where the names of the series stand.
    pub legend: Legend,
}

/// What is measured along an axis, with its unit, and the values at its ends.
#[derive(Clone, Debug)]
pub struct Axis {
    pub name: String,
    pub from: f64,
    pub to: f64,
    pub scale: Scale,
}

#[derive(Clone, Debug)]
pub enum Scale {
    Linear,
    /// Values must be above 0; what is below the axis' lower end is drawn there.
    Log,
    /// Of whole numbers from 0 on, each with a name.
    Names(Vec<String>),
}

#[derive(Clone, Debug)]
pub struct Series {
    pub name: String,
    /// x and y, in the units of the axes.
    pub points: Vec<(f64, f64)>,
    pub shape: Shape,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Line,
    /// Grey and dashed: to compare with.
    Guide,
    Points,
    /// From the lower end of the y axis up, around each x; the value above.
    Bars,
}

/// Corner of a chart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Legend {
    UpperLeft,
    UpperRight,
    LowerLeft,
    LowerRight,
}

impl Axis {
    pub fn linear(name: &str, from: f64, to: f64) -> Axis {
        Axis { name: name.into(), from, to, scale: Scale::Linear }
    }

    pub fn log(name: &str, from: f64, to: f64) -> Axis {
        Axis { name: name.into(), from, to, scale: Scale::Log }
    }

    pub fn names(name: &str, names: Vec<String>) -> Axis {
        Axis { name: name.into(), from: -0.5, to: names.len() as f64 - 0.5, scale: Scale::Names(names) }
    }

    /// Where a value stands: on a logarithmic axis, at its decimal logarithm.
    fn place(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Log => value.max(self.from).log10(),
            _ => value,
        }
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.place(self.from)..self.place(self.to)
    }

    /// What stands at a tick.
    fn label(&self, place: f64) -> String {
        let whole = (place - place.round()).abs() < 1e-9;
        match &self.scale {
            Scale::Linear => rounded(place),
            Scale::Log if whole && (-4.5..4.5).contains(&place) => rounded(10f64.powf(place.round())),
            Scale::Log if whole => format!("1e{place:.0}"),
            Scale::Log => String::new(),
            Scale::Names(names) => {
                let name = names.get(place.round() as usize).filter(|_| whole && place > -0.25);
                name.cloned().unwrap_or_default()
            }
        }
    }

    fn ticks(&self) -> usize {
        match &self.scale {
            Scale::Linear => 8,
            Scale::Log => 10,
            Scale::Names(names) => names.len() + 1,
        }
    }
}

/// To six digits, without zeros at the end.
fn rounded(value: f64) -> String {
    let text = format!("{value:.6}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".into() } else { text.into() }
}

/// The charts side by side, as an SVG document.
pub fn svg(charts: &[Chart]) -> Result<String, ModelError> {
    let mut document = String::new();
    let size = (SIZE.0 * charts.len() as u32, SIZE.1);
    {
        let root = SVGBackend::with_string(&mut document, size).into_drawing_area();
        let failed = |title: &str, problem: String| ModelError::Chart { chart: title.into(), problem };
        root.fill(&WHITE).map_err(|error| failed("background", error.to_string()))?;
        for (area, chart) in root.split_evenly((1, charts.len())).iter().zip(charts) {
            draw(area, chart).map_err(|error| failed(&chart.title, error.to_string()))?;
        }
        root.present().map_err(|error| failed("document", error.to_string()))?;
    }
    Ok(document)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Failed<'a> = DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>;
type Context<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

fn draw<'b>(area: &Area<'b>, chart: &Chart) -> Result<(), Failed<'b>> {
    let mut context = ChartBuilder::on(area)
        .margin(14)
        .margin_right(22)
        .caption(&chart.title, (FONT, 17))
        .x_label_area_size(46)
        .y_label_area_size(64)
        .build_cartesian_2d(chart.x.range(), chart.y.range())?;
    context
        .configure_mesh()
        .x_desc(&chart.x.name)
        .y_desc(&chart.y.name)
        .axis_desc_style((FONT, 14))
        .label_style((FONT, 12))
        .x_labels(chart.x.ticks())
        .y_labels(chart.y.ticks())
        .x_label_formatter(&|place| chart.x.label(*place))
        .y_label_formatter(&|place| chart.y.label(*place))
        .bold_line_style(BLACK.mix(0.12))
        .light_line_style(TRANSPARENT)
        .axis_style(BLACK.mix(0.6))
        .draw()?;
    for (series, colour) in chart.series.iter().zip(COLOURS.iter().cycle()) {
        draw_series(&mut context, chart, series, *colour)?;
    }
    if chart.series.len() > 1 {
        let position = match chart.legend {
            Legend::UpperLeft => SeriesLabelPosition::UpperLeft,
            Legend::UpperRight => SeriesLabelPosition::UpperRight,
            Legend::LowerLeft => SeriesLabelPosition::LowerLeft,
            Legend::LowerRight => SeriesLabelPosition::LowerRight,
        };
        context
            .configure_series_labels()
            .position(position)
            .margin(12)
            .legend_area_size(28)
            .background_style(WHITE.mix(0.85))
            .border_style(BLACK.mix(0.2))
            .label_font((FONT, 13))
            .draw()?;
    }
    Ok(())
}

fn draw_series<'b>(
    context: &mut Context<'_, 'b>,
    chart: &Chart,
    series: &Series,
    colour: RGBColor,
) -> Result<(), Failed<'b>> {
    let colour = if series.shape == Shape::Guide { GREY } else { colour };
    let points = series.points.iter().map(|(x, y)| (chart.x.place(*x), chart.y.place(*y)));
    let drawn = match series.shape {
        Shape::Line => context.draw_series(LineSeries::new(points, colour.stroke_width(2)))?,
        Shape::Guide => context.draw_series(DashedLineSeries::new(points, 6, 4, colour.stroke_width(1)))?,
        Shape::Points => context.draw_series(points.map(|point| Circle::new(point, 4, colour.filled())))?,
        Shape::Bars => {
            let bottom = chart.y.range().start;
            let values = series.points.iter().map(|(_, value)| format!("{value:.3}"));
            let labels: Vec<_> = points.clone().zip(values).collect();
            let style = (FONT, 13).into_font().into_text_style(context.plotting_area());
            let style = style.pos(plotters::style::text_anchor::Pos::new(
                plotters::style::text_anchor::HPos::Center,
                plotters::style::text_anchor::VPos::Bottom,
            ));
            context.draw_series(
                labels
                    .into_iter()
                    .map(|(point, value)| EmptyElement::at(point) + Text::new(value, (0, -4), style.clone())),
            )?;
            context.draw_series(
                points.map(|(x, y)| Rectangle::new([(x - 0.3, bottom), (x + 0.3, y)], colour.mix(0.8).filled())),
            )?
        }
    };
    drawn.label(&series.name).legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(3)));
    Ok(())
}

/// The losses and the validation AP of each epoch, with the epoch whose weights were kept.
pub(crate) fn training(curve: &[Epoch], kept: usize) -> Result<String, ModelError> {
    let of = |figure: fn(&Epoch) -> f64| -> Vec<(f64, f64)> {
        curve.iter().map(|epoch| (epoch.epoch as f64, figure(epoch))).collect()
    };
    let series = |name: &str, points, shape| Series { name: name.into(), points, shape };
    let (training, validation) = (of(|epoch| epoch.train_loss), of(|epoch| epoch.validation_loss));
    let precision = of(|epoch| epoch.validation_ap);
    let kept: Vec<(f64, f64)> = precision.iter().copied().filter(|point| point.0 == kept as f64).collect();
    let epochs = || Axis::linear("epoch", 0.0, curve.len() as f64 + 0.5);
    let highest = |values: &[(f64, f64)]| values.iter().map(|point| point.1).fold(0.0, f64::max);
    let lowest = precision.iter().map(|point| point.1).fold(1.0, f64::min);
    svg(&[
        Chart {
            title: "Loss".into(),
            x: epochs(),
            y: Axis::linear("nats per row", 0.0, (1.1 * highest(&training).max(highest(&validation))).max(1e-3)),
            series: vec![
                series("training rows as drawn", training, Shape::Line),
                series("validation", validation, Shape::Line),
            ],
            legend: Legend::UpperRight,
        },
        Chart {
            title: "Average precision on the validation rows".into(),
            x: epochs(),
            y: Axis::linear(
                "average precision",
                (lowest - 0.02).clamp(0.0, 0.9),
                (highest(&precision) + 0.02).min(1.0),
            ),
            series: vec![series("after the epoch", precision, Shape::Line), series("kept", kept, Shape::Points)],
            legend: Legend::LowerRight,
        },
    ])
}

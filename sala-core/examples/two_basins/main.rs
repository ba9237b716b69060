//! A loss with two basins, one sharp and slightly deeper, one flat and wide: SGD and Lookahead stay in
//! the sharp one when they come through it, SAM and SALA leave it and end in the flat one.
//!
//! ```text
//! cargo run --release -p sala-core --example two_basins -- docs/two_basins.svg
//! cargo test -p sala-core --example two_basins
//! ```
//!
//! The first command, about half a minute on two cores, made the figure that it names; without a path
//! the figure goes to the temporary folder. The second checks what is claimed here.
//!
//! This shows a mechanism, not evidence for networks: the loss was built so that the radius of the
//! ascent fits the width of the sharp basin, and the last table prints what happens when it does not.
//! Nothing is random; the same numbers come out every time.

#![allow(clippy::print_stdout)]

mod figure;

use std::path::PathBuf;

use anyhow::{Context, Result};
use candle_core::{D, Device, Tensor, Var};
use rayon::prelude::*;
use sala_core::{
    Minimizer, ParamSet, ParamsLookahead, ParamsSala, ParamsSam, ParamsSgd,
    catalogue::{Base, Method, build},
};

/// A Gaussian well in the loss.
#[derive(Debug, PartialEq)]
struct Well {
    name: &'static str,
    centre: [f64; 2],
    /// Loss at the centre below the surroundings.
    depth: f64,
    /// Standard deviation σ. The curvature at the centre is depth / σ², the slope steepest at σ from it.
    width: f64,
}

/// The deeper one, by a fifth, with nine times the curvature of the other.
const SHARP: Well = Well {
    name: "sharp",
    centre: [1.0, 0.0],
    depth: 1.2,
    width: 0.25,
};

const FLAT: Well = Well {
    name: "flat",
    centre: [-1.0, 0.0],
    depth: 1.0,
    width: 0.7,
};

/// Curvature of a bowl around both, so that every start comes down to one of them.
const BOWL: f64 = 0.1;

/// At the bottom of the sharp basin η λ = 0.1 · 19.3 = 1.9, and SGD with this momentum is stable up to
/// 2 (1 + μ) = 3.8. So it is not the step size that tells the basins apart.
const LR: f64 = 0.1;
const MOMENTUM: f64 = 0.9;

/// The width of the sharp basin: from its bottom the ascent reaches where its slope is steepest, from
/// further out its rim and beyond, while the flat basin hardly changes over such a distance.
const RHO: f64 = SHARP.width;

/// Enough for every run to arrive. SAM and SALA do not settle at a constant radius and learning rate:
/// they circle about the bottom of the flat basin.
const STEPS: usize = 300;

/// To the right of the sharp basin, so that the way down leads through it.
const START: [f64; 2] = [2.0, 0.6];

/// Loss at one point (2) or at many (N, 2).
fn loss(points: &Tensor) -> candle_core::Result<Tensor> {
    let mut loss = (points.sqr()?.sum(D::Minus1)? * (BOWL / 2.0))?;
    for well in [SHARP, FLAT] {
        let centre = Tensor::new(&well.centre, &Device::Cpu)?;
        let distance = points.broadcast_sub(&centre)?.sqr()?.sum(D::Minus1)?;
        let shape = (distance / (-2.0 * well.width * well.width))?.exp()?;
        loss = (loss - (shape * well.depth)?)?;
    }
    Ok(loss)
}

/// The largest eigenvalue of the Hessian, in closed form: the bowl has BOWL I, and a well of depth a and
/// width σ, with u the way from its centre in units of σ, has a/σ² exp(−|u|²/2) (I − u uᵀ).
fn sharpness(point: [f64; 2]) -> f64 {
    let (mut xx, mut xy, mut yy) = (BOWL, 0.0, BOWL);
    for well in [SHARP, FLAT] {
        let [ux, uy] = well.way_to(point);
        let scale = well.depth / well.width.powi(2) * (-0.5 * (ux * ux + uy * uy)).exp();
        xx += scale * (1.0 - ux * ux);
        xy -= scale * ux * uy;
        yy += scale * (1.0 - uy * uy);
    }
    let mean = f64::midpoint(xx, yy);
    mean + (xx - mean).hypot(xy)
}

impl Well {
    /// From the centre to a point, in units of the width.
    fn way_to(&self, point: [f64; 2]) -> [f64; 2] {
        [0, 1].map(|i| (point[i] - self.centre[i]) / self.width)
    }

    /// Within one width of the centre.
    fn holds(&self, point: [f64; 2]) -> bool {
        let [x, y] = self.way_to(point);
        x.hypot(y) < 1.0
    }
}

/// The basin that a point lies in.
fn basin(point: [f64; 2]) -> &'static str {
    let well = [SHARP, FLAT].into_iter().find(|well| well.holds(point));
    well.map_or("neither", |well| well.name)
}

/// The four methods over the same SGD, with their usual k and α.
fn methods(rho: f64) -> [(&'static str, Method); 4] {
    let sam = ParamsSam {
        rho,
        ..Default::default()
    };
    let sala = ParamsSala {
        rho,
        ..Default::default()
    };
    [
        ("SGD", Method::Base),
        ("Lookahead", Method::Lookahead(ParamsLookahead::default())),
        ("SAM", Method::Sam(sam)),
        ("SALA", Method::Sala(sala)),
    ]
}

/// Where a run went.
struct Run {
    /// The start and the weights after each step, the slow ones where there are any.
    path: Vec<[f64; 2]>,
    /// Gradients that it took.
    gradients: f64,
}

impl Run {
    fn end(&self) -> [f64; 2] {
        self.path[self.path.len() - 1]
    }
}

fn run(method: &Method, start: [f64; 2]) -> Result<Run> {
    let w = Var::new(&start, &Device::Cpu)?;
    let base = Base::Sgd(ParamsSgd {
        lr: LR,
        momentum: MOMENTUM,
        ..Default::default()
    });
    let mut optimizer = build(ParamSet::new([("w", w.clone())])?, &base, method, None)?;
    let mut run = Run {
        path: vec![start],
        gradients: 0.0,
    };
    for _ in 0..STEPS {
        run.gradients += optimizer.step(&mut |_| loss(&w))?.evaluations;
        let weights = optimizer.with_slow_weights(|| w.to_vec1::<f64>())?;
        run.path.push([weights[0], weights[1]]);
    }
    Ok(run)
}

/// How many of n × n starts, evenly over [−2, 2]², end in the sharp basin, in the flat one and in neither.
fn count(method: &Method, n: usize) -> Result<[usize; 3]> {
    let place = |i: usize| 4.0 * i as f64 / (n - 1) as f64 - 2.0;
    let ends = (0..n * n).into_par_iter().map(|i| {
        let start = [place(i % n), place(i / n)];
        Ok(basin(run(method, start)?.end()))
    });
    let ends = ends.collect::<Result<Vec<_>>>()?;
    Ok([SHARP.name, FLAT.name, "neither"]
        .map(|name| ends.iter().filter(|end| **end == name).count()))
}

fn main() -> Result<()> {
    let path = std::env::args_os().nth(1).map_or_else(
        || std::env::temp_dir().join("two_basins.svg"),
        PathBuf::from,
    );

    println!(
        "From one start, {START:?}, {STEPS} steps of SGD ({LR}, momentum {MOMENTUM}), ρ = {RHO}:\n"
    );
    println!(
        "| optimizer | end                | loss    | basin | largest eigenvalue | gradients |"
    );
    println!(
        "|-----------|--------------------|---------|-------|--------------------|-----------|"
    );
    let mut runs = Vec::new();
    for (name, method) in methods(RHO) {
        let run = run(&method, START)?;
        let [x, y] = run.end();
        let loss = loss(&Tensor::new(&[x, y], &Device::Cpu)?)?.to_scalar::<f64>()?;
        let (basin, sharpness, gradients) = (basin([x, y]), sharpness([x, y]), run.gradients);
        println!(
            "| {name:<9} | ({x:>7.4}, {y:>7.4}) | {loss:>7.4} | {basin:<5} | {sharpness:>18.2} | {gradients:>9} |"
        );
        runs.push((name, run.path));
    }

    println!("\nFrom 20 × 20 starts over [−2, 2]²:\n");
    println!("| optimizer | sharp | flat | neither |\n|-----------|-------|------|---------|");
    for (name, method) in methods(RHO) {
        let [sharp, flat, neither] = count(&method, 20)?;
        println!("| {name:<9} | {sharp:>5} | {flat:>4} | {neither:>7} |");
    }

    println!(
        "\nFrom 10 × 10 starts, how many end in the sharp basin (in neither) with another radius:\n"
    );
    println!("| ρ    | SAM       | SALA      |\n|------|-----------|-----------|");
    for rho in [0.0, 0.05, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5] {
        let [_, _, sam, sala] = methods(rho).map(|(_, method)| count(&method, 10));
        let cell = |[sharp, _, neither]: [usize; 3]| format!("{sharp} ({neither})");
        println!("| {rho:<4} | {:<9} | {:<9} |", cell(sam?), cell(sala?));
    }

    let drawing = figure::draw(&runs)?;
    svg::save(&path, &drawing).with_context(|| path.display().to_string())?;
    println!("\nfigure: {}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(rho: f64) -> [&'static str; 4] {
        methods(rho).map(|(_, method)| basin(run(&method, START).unwrap().end()))
    }

    #[test]
    fn sam_and_sala_end_in_the_flat_basin_and_the_others_in_the_sharp_one() {
        assert_eq!(ends(RHO), ["sharp", "sharp", "flat", "flat"]);
    }

    #[test]
    fn without_an_ascent_all_end_in_the_sharp_basin() {
        assert_eq!(ends(0.0), ["sharp"; 4]);
    }

    #[test]
    fn it_does_not_hang_on_the_start() {
        let sharp = methods(RHO).map(|(_, method)| count(&method, 8).unwrap()[0]);
        assert!(sharp[0] >= 8 && sharp[1] >= 8, "{sharp:?} of 64");
        assert!(sharp[2] <= 1 && sharp[3] <= 1, "{sharp:?} of 64");
    }

    #[test]
    fn the_sharp_basin_is_deeper_and_the_closed_form_of_its_curvature_right() {
        let at = |x: f64, y: f64| {
            let point = Tensor::new(&[x, y], &Device::Cpu).unwrap();
            loss(&point).unwrap().to_scalar::<f64>().unwrap()
        };
        assert!(at(1.0, 0.0) < at(-1.0, 0.0));
        // Off the axis on purpose: there the mixed derivative counts.
        let ([x, y], h) = ([0.9, 0.2], 1e-4);
        let second =
            |dx: f64, dy: f64| (at(x + dx, y + dy) + at(x - dx, y - dy) - 2.0 * at(x, y)) / (h * h);
        let (xx, yy) = (second(h, 0.0), second(0.0, h));
        let xy = (second(h, h) - xx - yy) / 2.0;
        let mean = f64::midpoint(xx, yy);
        let largest = mean + (xx - mean).hypot(xy);
        assert!((sharpness([x, y]) - largest).abs() < 1e-5 * largest);
    }
}

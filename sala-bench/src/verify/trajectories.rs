//! Fifty steps of every method of the catalogue over both bases, against the composed updates on the CPU in
//! the same dtype; half precision with f32 masters. Before two of them a step fails, which is to change nothing.

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor, Var};
use sala_core::{
    Clip, Error, ParamSet, Pass, Resumable,
    catalogue::{Base, Method, build},
    testing::{Tolerance, methods::combinations, read},
};
use sala_models::kernels::Choice;

use super::{
    FORMS,
    check::{Section, Verdict, of_trajectories},
    has_f64, in_form,
    task::Task,
};

const STEPS: usize = 50;
/// Steps before which one fails: the first, before there is a momentum, and one among the others.
const FAILURES: [usize; 2] = [1, 27];
/// Elements of the large variable: more than a block of threads has, and odd.
const LARGE: usize = 4099;
/// Moves the large variable so slowly that it does not decide alone how far the weights go.
const LARGE_LR: f64 = 0.1;
const CLIP: f64 = 0.9;

pub(super) fn tasks(device: &Device) -> Vec<Task> {
    let mut tasks = vec![];
    for (name, base, method) in combinations() {
        for dtype in [DType::F64, DType::F32, DType::BF16] {
            if dtype == DType::F64 && !has_f64(device) {
                continue;
            }
            for form in FORMS {
                let tolerance = of_trajectories(device, dtype);
                let (device, base, method) = (device.clone(), base.clone(), method.clone());
                let section = Section::Trajectories;
                tasks.push(Task::new(section, name.clone(), dtype, form, move || {
                    let reference = Run {
                        device: Device::Cpu,
                        dtype,
                        form: Choice::Composed,
                    };
                    let checked = Run {
                        device,
                        dtype,
                        form,
                    };
                    let wanted = reference.walk(&base, &method)?;
                    Ok(compare(&checked.walk(&base, &method)?, &wanted, tolerance))
                }));
            }
        }
    }
    tasks
}

/// Where, in which numbers and with which kernels.
struct Run {
    device: Device,
    dtype: DType,
    form: Choice,
}

/// What a run leaves.
struct Path {
    weights: Vec<(String, Vec<f64>)>,
    losses: Vec<f64>,
    /// Which steps climbed.
    climbs: Vec<bool>,
}

impl Run {
    fn walk(&self, base: &Base, method: &Method) -> Result<Path> {
        in_form(self.form, || self.steps(base, method))
    }

    fn steps(&self, base: &Base, method: &Method) -> Result<Path> {
        let problem = Problem::new(&self.device, self.dtype)?;
        let params = ParamSet::new(problem.named())?;
        let mut params = params.with_lr_scale(LARGE_LR, |name| name == "large")?;
        if self.dtype == DType::BF16 {
            params = params.with_f32_masters()?;
        }
        let mut optimizer = build(params, base, method, Some(Clip::Norm(CLIP)))?;
        let (mut losses, mut climbs) = (vec![], vec![]);
        for step in 1..=STEPS {
            if FAILURES.contains(&step) {
                fail(optimizer.as_mut(), &problem)?;
            }
            let report = optimizer.step(&mut |pass: Pass| problem.loss(pass));
            let report = report.with_context(|| format!("step {step}"))?;
            losses.push(report.loss);
            climbs.push(report.ascent);
        }
        let weights = problem.named().into_iter();
        let weights = weights.map(|(name, var)| Ok((name, read(&var)?)));
        Ok(Path {
            weights: weights.collect::<Result<_>>()?,
            losses,
            climbs,
        })
    }
}

/// A step that is not made because its last pass is not finite.
fn fail(optimizer: &mut dyn Resumable, problem: &Problem) -> Result<()> {
    let outcome = optimizer.step(&mut |pass: Pass| {
        let loss = problem.loss(pass)?;
        match pass {
            Pass::Direction { .. } => Ok(loss),
            _ => loss * f64::NAN,
        }
    });
    ensure!(
        matches!(outcome, Err(Error::NonFinite { .. })),
        "a loss that is not a number must be an error of the step, got {outcome:?}"
    );
    Ok(())
}

fn compare(got: &Path, wanted: &Path, tolerance: Tolerance) -> Verdict {
    let climbs = got.climbs.iter().zip(&wanted.climbs);
    if let Some((step, (_, climbed))) = (1..).zip(climbs).find(|(_, (got, wanted))| got != wanted) {
        let on_the_cpu = if *climbed { "climbed" } else { "did not climb" };
        return Verdict::failed(format!(
            "step {step} {on_the_cpu} on the CPU, and here it was the other way round"
        ));
    }
    let mut verdict = Verdict::empty();
    for ((name, got), (_, wanted)) in got.weights.iter().zip(&wanted.weights) {
        verdict.compare(&format!("weights `{name}`"), tolerance, got, wanted);
    }
    verdict.compare("losses", tolerance, &got.losses, &wanted.losses);
    verdict
}

/// Least squares of a two-layer tanh network, and ½ c Σ aᵢ wᵢ² over a large variable. It is computed in f32 at
/// least, so that gradients of half precision are rounded once.
struct Problem {
    first: Var,
    second: Var,
    large: Var,
    curvature: Tensor,
    inputs: Tensor,
    targets: Tensor,
}

impl Problem {
    fn new(device: &Device, dtype: DType) -> candle_core::Result<Self> {
        let wide = if dtype == DType::F64 {
            dtype
        } else {
            DType::F32
        };
        let wave = |count: usize, phase: f64, scale: f64| {
            let values = (0..count).map(|i| scale * (1.7 * i as f64 + phase).sin());
            Tensor::from_iter(values, &Device::Cpu)?.to_dtype(dtype)
        };
        let var = |wave: Tensor| Var::from_tensor(&wave.to_device(device)?);
        let given = |wave: Tensor| wave.to_dtype(wide)?.to_device(device);
        Ok(Self {
            first: var(wave(15, 0.3, 1.0)?.reshape((3, 5))?)?,
            second: var(wave(10, 1.1, 1.0)?.reshape((5, 2))?)?,
            large: var(wave(LARGE, 0.9, 1.0)?)?,
            curvature: given((wave(LARGE, 0.1, 0.5)? + 1.0)?)?,
            inputs: given(wave(24, 2.0, 1.0)?.reshape((8, 3))?)?,
            targets: given(wave(16, 0.7, 1.0)?.reshape((8, 2))?)?,
        })
    }

    /// Names such that the order of creation and the order of names differ.
    fn named(&self) -> Vec<(String, Var)> {
        let all = [
            ("z.first", &self.first),
            ("a.second", &self.second),
            ("large", &self.large),
        ];
        all.map(|(name, var)| (name.to_owned(), var.clone())).into()
    }

    fn loss(&self, pass: Pass) -> candle_core::Result<Tensor> {
        let wide = |var: &Var| var.to_dtype(self.inputs.dtype());
        let (x, y) = (pass.take(&self.inputs)?, pass.take(&self.targets)?);
        let hidden = x.matmul(&wide(&self.first)?)?.tanh()?;
        let misfit = (hidden.matmul(&wide(&self.second)?)? - y)?
            .sqr()?
            .mean_all()?;
        let bowl = (wide(&self.large)?.sqr()? * &self.curvature)?.sum_all()?;
        misfit + (bowl * (15.0 / LARGE as f64))?
    }
}

#[cfg(test)]
mod tests {
    use sala_core::{ParamsSala, ParamsSam, ParamsSgd};

    use super::*;

    fn path(base: ParamsSgd, method: &Method) -> Path {
        let run = Run {
            device: Device::Cpu,
            dtype: DType::F32,
            form: Choice::Auto,
        };
        run.walk(&Base::Sgd(base), method).unwrap()
    }

    fn verdict(got: &Path, wanted: &Path) -> Verdict {
        compare(got, wanted, of_trajectories(&Device::Cpu, DType::F32))
    }

    fn sgd() -> ParamsSgd {
        ParamsSgd {
            lr: 0.05,
            momentum: 0.9,
            ..ParamsSgd::default()
        }
    }

    #[test]
    fn a_method_that_is_a_little_off_fails_and_says_in_which_weights() {
        let sam = |rho| {
            Method::Sam(ParamsSam {
                rho,
                ..ParamsSam::default()
            })
        };
        let wanted = path(sgd(), &sam(0.1));
        assert!(verdict(&path(sgd(), &sam(0.1)), &wanted).passed());
        let off = verdict(&path(sgd(), &sam(0.101)), &wanted);
        assert!(!off.passed() && off.share.unwrap() > 10.0, "{off:?}");
        let nesterov = ParamsSgd {
            weight_decay: 1e-4,
            ..sgd()
        };
        let off = verdict(&path(nesterov, &sam(0.1)), &wanted);
        assert!(!off.passed(), "{off:?}");
        assert!(off.worst.unwrap().part.contains("weights `"));
    }

    #[test]
    fn a_decision_that_differs_is_a_failure_of_its_own() {
        let sala = |rho| {
            Method::Sala(ParamsSala {
                rho,
                ..ParamsSala::default()
            })
        };
        let never = path(sgd(), &sala(0.0));
        let always = path(sgd(), &sala(0.5));
        let off = verdict(&always, &never);
        let error = off.error.unwrap();
        assert!(error.contains("did not climb on the CPU"), "{error}");
    }

    // Otherwise one of SALA's stages would not be compared.
    #[test]
    fn sala_has_both_stages_over_both_bases() {
        for base_name in ["sgd", "adamw"] {
            let (mut climbs, mut walks) = (0, 0);
            for (name, base, method) in combinations() {
                if !name.starts_with("sala") || !name.ends_with(base_name) {
                    continue;
                }
                let run = Run {
                    device: Device::Cpu,
                    dtype: DType::F32,
                    form: Choice::Auto,
                };
                let climbed = run.walk(&base, &method).unwrap().climbs;
                climbs += climbed.iter().filter(|c| **c).count();
                // Cycles have three steps at most.
                walks += climbed
                    .windows(3)
                    .filter(|steps| !steps.contains(&true))
                    .count();
            }
            assert!(climbs > 20 && walks > 20, "{base_name}: {climbs}, {walks}");
        }
    }
}

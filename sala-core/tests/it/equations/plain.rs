//! Every method from its published equations, in plain numbers. Of the crate it knows the configurations
//! alone.
//!
//! w are the weights, g the gradient there, g' the one at perturbed weights, ‖·‖ and ⟨·,·⟩ run over all
//! parameters.

use sala_core::{
    Clip, MomentumAtPull, ParamsAdam, ParamsLookahead, ParamsSala, ParamsSam, ParamsSgd, SlowInit,
    catalogue::{Base, Direction, Method},
    perturb::{AscentNorm, RhoScale},
};

use super::problems::{Point, Rows};

/// Loss and gradient at some weights on some rows of the step's batch.
pub type Loss<'a> = &'a dyn Fn(&Point, Rows) -> (f64, Point);

/// a x + b y.
pub fn sum(a: f64, x: &Point, b: f64, y: &Point) -> Point {
    map(x, |p, i| a * x[p][i] + b * y[p][i])
}

pub fn norm(x: &Point) -> f64 {
    dot(x, x).sqrt()
}

fn dot(x: &Point, y: &Point) -> f64 {
    let pairs = x.iter().flatten().zip(y.iter().flatten());
    pairs.map(|(x, y)| x * y).sum()
}

fn scaled(a: f64, x: &Point) -> Point {
    map(x, |p, i| a * x[p][i])
}

fn zeros(like: &Point) -> Point {
    map(like, |_, _| 0.0)
}

/// A point from the numbers of a parameter and an element.
fn map(like: &Point, f: impl Fn(usize, usize) -> f64) -> Point {
    let parameter = |(p, x): (usize, &Vec<f64>)| (0..x.len()).map(|i| f(p, i)).collect();
    like.iter().enumerate().map(parameter).collect()
}

/// What applies to one parameter.
#[derive(Debug, Clone)]
pub struct Setting {
    pub name: &'static str,
    pub lr_scale: f64,
    pub weight_decay: Option<f64>,
    pub rho_scale: f64,
    pub group: usize,
    pub adaptive: Option<bool>,
}

/// What is run.
#[derive(Debug, Clone)]
pub struct Config {
    pub base: Base,
    pub method: Method,
    pub clip: Option<Clip>,
    /// In the order of the parameters.
    pub settings: Vec<Setting>,
}

/// What a step tells of itself.
#[derive(Debug)]
pub struct Told {
    pub loss: f64,
    pub evaluations: f64,
    pub ascent: bool,
    pub gap: Option<f64>,
    pub grad_norm: f64,
}

/// The gradients of a step: g' where it climbed.
struct Passes {
    loss: f64,
    evaluations: f64,
    ascent: bool,
    gradient: Point,
}

fn told(passes: &Passes, gap: Option<f64>) -> Told {
    Told {
        loss: passes.loss,
        evaluations: passes.evaluations,
        ascent: passes.ascent,
        gap,
        grad_norm: norm(&passes.gradient),
    }
}

/// How an ascent is scaled and on what share of the batch it is taken.
#[derive(Clone, Copy)]
struct Ascent {
    rho: f64,
    scale: RhoScale,
    norm: AscentNorm,
    fraction: f64,
    stable: bool,
}

fn ascent_of(sam: &ParamsSam) -> Ascent {
    Ascent {
        rho: sam.rho,
        scale: sam.scale,
        norm: sam.norm,
        fraction: sam.direction_fraction,
        stable: sam.stable,
    }
}

/// A method with its state.
pub struct Plain {
    config: Config,
    pub lr: f64,
    pub w: Point,
    /// n, from 1.
    step: u64,
    /// SGD's b, or Adam's m; none before the first step.
    momentum: Option<Point>,
    /// Adam's v.
    second_moment: Point,
    /// φ.
    pub slow: Option<Point>,
    /// s of a momentum that is pulled back.
    slow_momentum: Point,
    /// m of Friendly SAM.
    mean: Point,
    /// v of Momentum SAM.
    velocity: Point,
    /// v of `LookSAM`.
    orthogonal: Point,
    gap: f64,
    near: bool,
}

impl Plain {
    pub fn new(config: Config, w: Point) -> Self {
        let slow = match &config.method {
            Method::Lookahead(ParamsLookahead { init, .. })
            | Method::Sala(ParamsSala { init, .. })
            | Method::SalaOver(ParamsSala { init, .. }, _) => {
                (*init == SlowInit::Construction).then(|| w.clone())
            }
            _ => None,
        };
        Self {
            lr: match &config.base {
                Base::Sgd(sgd) => sgd.lr,
                Base::Adam(adam) => adam.lr,
            },
            step: 0,
            momentum: None,
            second_moment: zeros(&w),
            slow,
            slow_momentum: zeros(&w),
            mean: zeros(&w),
            velocity: zeros(&w),
            orthogonal: zeros(&w),
            gap: 0.0,
            // A gap of nothing is below every radius but 0.
            near: true,
            config,
            w,
        }
    }

    pub fn step(&mut self, loss: Loss) -> Told {
        self.step += 1;
        let passes = match self.config.method.clone() {
            Method::Lookahead(c) => return self.lookahead(loss, &c),
            Method::Sam(c) => self.sam(loss, &c),
            Method::Asam(c) => {
                let ascent = Ascent {
                    rho: c.rho,
                    scale: c.scale,
                    norm: c.norm,
                    fraction: c.direction_fraction,
                    stable: c.stable,
                };
                self.adaptive(loss, (c.eta, c.weights_only), ascent)
            }
            Method::SamEvery(c) if self.step.is_multiple_of(c.k) => self.sam(loss, &c.sam),
            Method::Base | Method::SamEvery(_) => self.clean(loss),
            Method::LookSam(c) if (self.step - 1).is_multiple_of(c.k) => self.look_up(loss, &c.sam),
            Method::LookSam(c) => self.look_again(loss, c.alpha),
            Method::Gsam(c) => self.per_micro_batch(c.sam.micro_batches, |me, rows| {
                me.surrogate_gap(loss, rows, c.alpha, &c.sam)
            }),
            Method::FriendlySam(c) => self.friendly(loss, (c.sigma, c.lambda), ascent_of(&c.sam)),
            Method::MomentumSam(c) => {
                let ascent = Ascent {
                    rho: c.rho,
                    scale: c.scale,
                    norm: c.norm,
                    fraction: 1.0,
                    stable: false,
                };
                let passes = self.against_velocity(loss, ascent);
                self.learn_velocity(c.mu, &passes.gradient);
                passes
            }
            Method::Sala(c) => return self.sala(loss, &c, Direction::Gradient),
            Method::SalaOver(c, direction) => return self.sala(loss, &c, direction),
        };
        self.descend(&passes.gradient);
        told(&passes, None)
    }

    fn clean(&self, loss: Loss) -> Passes {
        let (loss, gradient) = loss(&self.w, Rows::ALL);
        Passes {
            loss,
            evaluations: 1.0,
            ascent: false,
            gradient,
        }
    }

    /// w + ε with ε = s ρ' d / (‖m‖ + 1e-12), where m is d itself but for ASAM, and the norm runs over the
    /// parameters with s > 0, of the group or of all.
    fn perturbed(&self, c: Ascent, d: &Point, m: &Point) -> Point {
        let rho = self.radius(c.rho, c.scale);
        let settings = &self.config.settings;
        let norm_for = |p: usize| {
            let counts = |q: &usize| {
                let together =
                    c.norm == AscentNorm::Global || settings[*q].group == settings[p].group;
                together && settings[*q].rho_scale > 0.0
            };
            norm(&(0..m.len()).filter(counts).map(|q| m[q].clone()).collect())
        };
        let factor = |p: usize| settings[p].rho_scale * rho / (norm_for(p) + 1e-12);
        map(d, |p, i| self.w[p][i] + factor(p) * d[p][i])
    }

    /// ρ'.
    fn radius(&self, rho: f64, scale: RhoScale) -> f64 {
        match scale {
            RhoScale::Absolute => rho,
            RhoScale::ParameterNorm => rho * norm(&self.w),
            RhoScale::LearningRate { reference } => rho * self.lr / reference,
        }
    }

    /// The descent gradient of SAM from g' at the perturbed weights; stable: g' ‖g‖ / ‖g'‖.
    fn descend_from(
        at: &Point,
        loss: Loss,
        rows: Rows,
        c: Ascent,
        (first, g): (f64, &Point),
    ) -> Passes {
        let (_, up) = loss(at, Rows { share: 1.0, ..rows });
        Passes {
            loss: first,
            evaluations: 1.0 + c.fraction,
            ascent: true,
            gradient: if c.stable {
                scaled(norm(g) / norm(&up), &up)
            } else {
                up
            },
        }
    }

    /// SAM (Foret et al. 2021): ε = ρ g / ‖g‖.
    fn sam(&mut self, loss: Loss, c: &ParamsSam) -> Passes {
        self.per_micro_batch(c.micro_batches, |me, rows| {
            let (first, g) = me.direction(loss, rows, c.direction_fraction);
            let at = me.perturbed(ascent_of(c), &g, &g);
            Self::descend_from(&at, loss, rows, ascent_of(c), (first, &g))
        })
    }

    fn direction(&self, loss: Loss, rows: Rows, share: f64) -> (f64, Point) {
        loss(&self.w, Rows { share, ..rows })
    }

    /// The mean over micro-batches that are perturbed one by one.
    fn per_micro_batch(&self, parts: usize, pass: impl Fn(&Self, Rows) -> Passes) -> Passes {
        let passes = (0..parts).map(|part| {
            let rows = Rows {
                part,
                parts,
                share: 1.0,
            };
            pass(self, rows)
        });
        let add = |a: Passes, b: Passes| Passes {
            loss: a.loss + b.loss,
            gradient: sum(1.0, &a.gradient, 1.0, &b.gradient),
            ..b
        };
        let total = passes.reduce(add).unwrap();
        let n = parts as f64;
        Passes {
            loss: total.loss / n,
            gradient: scaled(1.0 / n, &total.gradient),
            ..total
        }
    }

    /// ASAM (Kwon et al. 2021): ε = ρ T² g / ‖T g‖ with T = |w| + η, or 1.
    fn adaptive(&self, loss: Loss, (eta, weights_only): (f64, bool), c: Ascent) -> Passes {
        let t = map(&self.w, |p, i| {
            let Setting { name, adaptive, .. } = self.config.settings[p];
            let default = !weights_only || name.contains("weight");
            if adaptive.unwrap_or(default) {
                self.w[p][i].abs() + eta
            } else {
                1.0
            }
        });
        let (first, g) = self.direction(loss, Rows::ALL, c.fraction);
        let tg = map(&g, |p, i| t[p][i] * g[p][i]);
        let ttg = map(&g, |p, i| t[p][i] * t[p][i] * g[p][i]);
        let at = self.perturbed(c, &ttg, &tg);
        Self::descend_from(&at, loss, Rows::ALL, c, (first, &g))
    }

    /// Friendly SAM (Li et al. 2024): m ← λ m + (1 − λ) g, ε along g − σ m.
    fn friendly(&mut self, loss: Loss, (sigma, lambda): (f64, f64), c: Ascent) -> Passes {
        let (first, g) = self.direction(loss, Rows::ALL, c.fraction);
        self.learn_mean(lambda, &g);
        let d = sum(1.0, &g, -sigma, &self.mean);
        let at = self.perturbed(c, &d, &d);
        Self::descend_from(&at, loss, Rows::ALL, c, (first, &g))
    }

    fn learn_mean(&mut self, lambda: f64, g: &Point) {
        self.mean = sum(lambda, &self.mean, 1.0 - lambda, g);
    }

    /// Momentum SAM (Becker et al. 2024): g at w − ρ v / ‖v‖, from the weights while v = 0.
    fn against_velocity(&self, loss: Loss, c: Ascent) -> Passes {
        let v = &self.velocity;
        if !v.iter().flatten().any(|v| v.abs() > 0.0) {
            return self.clean(loss);
        }
        let against = scaled(-1.0, v);
        let at = self.perturbed(c, &against, &against);
        let (loss, gradient) = loss(&at, Rows::ALL);
        Passes {
            loss,
            evaluations: 1.0,
            ascent: true,
            gradient,
        }
    }

    /// v ← μ v + g.
    fn learn_velocity(&mut self, mu: f64, g: &Point) {
        self.velocity = sum(mu, &self.velocity, 1.0, g);
    }

    /// GSAM (Zhuang et al. 2022): g' − α g⊥ with g⊥ = g − (⟨g, g'⟩ / ‖g'‖²) g'.
    fn surrogate_gap(&self, loss: Loss, rows: Rows, alpha: f64, c: &ParamsSam) -> Passes {
        let (first, g) = self.direction(loss, rows, c.direction_fraction);
        let at = self.perturbed(ascent_of(c), &g, &g);
        let passes = Self::descend_from(&at, loss, rows, ascent_of(c), (first, &g));
        let up = passes.gradient;
        let orthogonal = sum(1.0, &g, -dot(&g, &up) / (dot(&up, &up) + 1e-12), &up);
        Passes {
            gradient: sum(1.0, &up, -alpha, &orthogonal),
            ..passes
        }
    }

    /// A step of `LookSAM` (Liu et al. 2022) that climbs: g', and v = g' − (⟨g, g'⟩ / ‖g‖²) g for later.
    fn look_up(&mut self, loss: Loss, c: &ParamsSam) -> Passes {
        let (first, g) = self.direction(loss, Rows::ALL, c.direction_fraction);
        let at = self.perturbed(ascent_of(c), &g, &g);
        let passes = Self::descend_from(&at, loss, Rows::ALL, ascent_of(c), (first, &g));
        let up = &passes.gradient;
        self.orthogonal = sum(1.0, up, -dot(&g, up) / (dot(&g, &g) + 1e-12), &g);
        passes
    }

    /// One in between: g + α (‖g‖ / ‖v‖) v.
    fn look_again(&self, loss: Loss, alpha: f64) -> Passes {
        let (passes, v) = (self.clean(loss), &self.orthogonal);
        let g = &passes.gradient;
        let gradient = sum(1.0, g, alpha * norm(g) / (norm(v) + 1e-12), v);
        Passes { gradient, ..passes }
    }

    /// Lookahead (Zhang et al. 2019): every k steps φ ← φ + α (θ − φ), θ ← φ.
    fn lookahead(&mut self, loss: Loss, c: &ParamsLookahead) -> Told {
        let passes = self.clean(loss);
        self.descend(&passes.gradient);
        if self.step.is_multiple_of(c.k) {
            self.pull(c.alpha);
            self.w.clone_from(self.slow.as_ref().unwrap());
            let m = self.momentum.as_ref().unwrap();
            match c.momentum {
                MomentumAtPull::Keep => {}
                MomentumAtPull::Reset => self.momentum = Some(zeros(m)),
                MomentumAtPull::PullBack => {
                    self.slow_momentum = sum(1.0 - c.alpha, &self.slow_momentum, c.alpha, m);
                    self.momentum = Some(self.slow_momentum.clone());
                }
            }
        }
        told(&passes, None)
    }

    /// φ ← φ₀ + α (θ − φ₀); tells ‖θ − φ₀‖.
    fn pull(&mut self, alpha: f64) -> f64 {
        let before = self.slow.take().unwrap_or_else(|| self.w.clone());
        let way = sum(1.0, &self.w, -1.0, &before);
        self.slow = Some(sum(1.0, &before, alpha, &way));
        norm(&way)
    }

    /// SALA (Tan et al. 2024).
    fn sala(&mut self, loss: Loss, c: &ParamsSala, direction: Direction) -> Told {
        let ascent = Ascent {
            rho: c.rho,
            scale: c.scale,
            norm: c.norm,
            fraction: c.direction_fraction,
            stable: c.stable,
        };
        let last = self.step.is_multiple_of(c.k);
        let passes = if last && self.near {
            self.climb(loss, direction, ascent)
        } else {
            let passes = self.clean(loss);
            if let Direction::Friendly { lambda, .. } = direction {
                self.learn_mean(lambda, &passes.gradient);
            }
            passes
        };
        if let Direction::Momentum { mu } = direction {
            self.learn_velocity(mu, &passes.gradient);
        }
        if let (true, false, Some(slow)) = (last, self.near, &self.slow) {
            self.w.clone_from(slow);
        }
        self.descend(&passes.gradient);
        if (self.step + 1).is_multiple_of(c.k) {
            self.gap = (1.0 - c.alpha) * self.pull(c.alpha);
            self.near = self.gap < self.radius(c.rho, c.scale);
            if self.near {
                self.w.clone_from(self.slow.as_ref().unwrap());
            }
        }
        told(&passes, Some(self.gap))
    }

    fn climb(&mut self, loss: Loss, direction: Direction, c: Ascent) -> Passes {
        match direction {
            Direction::Gradient => {
                let (first, g) = self.direction(loss, Rows::ALL, c.fraction);
                let at = self.perturbed(c, &g, &g);
                Self::descend_from(&at, loss, Rows::ALL, c, (first, &g))
            }
            Direction::Adaptive { eta, weights_only } => {
                self.adaptive(loss, (eta, weights_only), c)
            }
            Direction::Friendly { sigma, lambda } => self.friendly(loss, (sigma, lambda), c),
            Direction::Momentum { .. } => self.against_velocity(loss, c),
        }
    }

    /// Clips the gradient and takes the base's step.
    fn descend(&mut self, g: &Point) {
        let g = match self.config.clip {
            Some(Clip::Norm(max)) if norm(g) > max => scaled(max / norm(g), g),
            Some(Clip::Value(max)) => map(g, |p, i| g[p][i].clamp(-max, max)),
            _ => g.clone(),
        };
        match self.config.base.clone() {
            Base::Sgd(c) => self.sgd(&c, &g),
            Base::Adam(c) => self.adamw(&c, &g),
        }
    }

    fn lr_of(&self, p: usize) -> f64 {
        self.lr * self.config.settings[p].lr_scale
    }

    fn decay_of(&self, p: usize, base: f64) -> f64 {
        self.config.settings[p].weight_decay.unwrap_or(base)
    }

    /// Nesterov's momentum with coupled decay: d = g + λ w, b ← μ b + d (d at first), w ← w − η (d + μ b).
    fn sgd(&mut self, c: &ParamsSgd, g: &Point) {
        assert!(c.nesterov && !c.decoupled && c.dampening.abs() < f64::EPSILON);
        let mu = c.momentum;
        let d = map(g, |p, i| {
            g[p][i] + self.decay_of(p, c.weight_decay) * self.w[p][i]
        });
        let b = match &self.momentum {
            None => d.clone(),
            Some(b) => sum(mu, b, 1.0, &d),
        };
        let ahead = sum(1.0, &d, mu, &b);
        self.w = map(g, |p, i| self.w[p][i] - self.lr_of(p) * ahead[p][i]);
        self.momentum = Some(b);
    }

    /// w ← (1 − η λ) w, m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) g², and with both over 1 − βⁿ
    /// w ← w − η m̂ / (√v̂ + ε).
    fn adamw(&mut self, c: &ParamsAdam, g: &Point) {
        assert!(c.decoupled);
        let (b1, b2) = (c.beta1, c.beta2);
        let m = self.momentum.take().unwrap_or_else(|| zeros(g));
        let m = sum(b1, &m, 1.0 - b1, g);
        let squares = map(g, |p, i| g[p][i].powi(2));
        self.second_moment = sum(b2, &self.second_moment, 1.0 - b2, &squares);
        let n = self.step as f64;
        self.w = map(g, |p, i| {
            let m = m[p][i] / (1.0 - b1.powf(n));
            let v = self.second_moment[p][i] / (1.0 - b2.powf(n));
            let decayed = (1.0 - self.lr_of(p) * self.decay_of(p, c.weight_decay)) * self.w[p][i];
            decayed - self.lr_of(p) * m / (v.sqrt() + c.eps)
        });
        self.momentum = Some(m);
    }
}

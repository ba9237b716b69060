//! Reads the reference files and computes their problems.

use std::{collections::HashMap, path::PathBuf};

use candle_core::{D, DType, Device, Result, Tensor, Var};
use sala_core::{
    ParamSet, ParamsAdam, ParamsAsam, ParamsLookahead, ParamsSala, ParamsSam, ParamsSgd, Pass,
    SlowInit,
    catalogue::{Base, Method},
    perturb::AscentNorm,
};
use serde_json::Value;

/// One reference run.
pub struct Oracle {
    pub name: String,
    case: Value,
    tensors: HashMap<String, Tensor>,
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/oracle")
}

impl Oracle {
    pub fn load(name: &str) -> Self {
        let path = folder().join(format!("{name}.safetensors"));
        let bytes = std::fs::read(&path).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let case = header.metadata().as_ref().unwrap()["case"].clone();
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap();
        Self {
            name: name.into(),
            case: serde_json::from_str(&case).unwrap(),
            tensors,
        }
    }

    /// Every reference file.
    pub fn all() -> Vec<Self> {
        let mut names: Vec<String> = std::fs::read_dir(folder())
            .unwrap()
            .filter_map(|entry| {
                entry
                    .unwrap()
                    .file_name()
                    .into_string()
                    .unwrap()
                    .strip_suffix(".safetensors")
                    .map(Into::into)
            })
            .collect();
        names.sort();
        assert_eq!(names.len(), 25, "reference files");
        names.iter().map(|name| Self::load(name)).collect()
    }

    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// Entry `step` (from 0) of a tensor with one entry a step.
    pub fn at(&self, name: &str, step: usize) -> Tensor {
        self.tensors[name].get(step).unwrap()
    }

    pub fn scalar(&self, name: &str, step: usize) -> f64 {
        self.at(name, step)
            .to_dtype(DType::F64)
            .unwrap()
            .to_scalar()
            .unwrap()
    }

    pub fn steps(&self) -> usize {
        self.tensors["lr"].elem_count()
    }

    pub fn wrapper(&self) -> &str {
        self.case["wrapper"].as_str().unwrap()
    }

    pub fn k(&self) -> usize {
        usize::try_from(self.case["wrapper_config"]["k"].as_u64().unwrap()).unwrap()
    }

    /// The initial parameters as fresh variables, sorted by name.
    pub fn vars(&self) -> Vec<(String, Var)> {
        let mut vars: Vec<_> = self
            .tensors
            .iter()
            .filter_map(|(name, t)| Some((name.strip_prefix("init.")?.to_owned(), t)))
            .map(|(name, t)| {
                (
                    name,
                    Var::from_tensor(&t.force_contiguous().unwrap()).unwrap(),
                )
            })
            .collect();
        vars.sort_by(|a, b| a.0.cmp(&b.0));
        vars
    }

    /// The parameters with the groups that the case asks for.
    pub fn params(&self, vars: &[(String, Var)]) -> ParamSet {
        let mut params = ParamSet::new(vars.iter().cloned()).unwrap();
        let Some(groups) = self.case["wrapper_config"]["groups"].as_array() else {
            return params;
        };
        // The first group is the default one.
        for (i, group) in groups.iter().enumerate().skip(1) {
            let members = group.as_array().unwrap();
            params = params
                .group(&format!("group {i}"), |name| {
                    members.iter().any(|m| m == name)
                })
                .unwrap();
        }
        params
    }

    pub fn base(&self) -> Base {
        let config = &self.case["base_config"];
        let number = |name: &str| config[name].as_f64().unwrap_or(0.0);
        let lr = self.scalar("lr", 0);
        match self.case["base"].as_str().unwrap() {
            "sgd" => Base::Sgd(ParamsSgd {
                lr,
                momentum: number("momentum"),
                nesterov: config["nesterov"].as_bool().unwrap_or(false),
                weight_decay: number("weight_decay"),
                ..Default::default()
            }),
            "adam" => Base::Adam(ParamsAdam {
                lr,
                weight_decay: number("weight_decay"),
                ..Default::default()
            }),
            "adamw" => Base::Adam(ParamsAdam {
                lr,
                weight_decay: number("weight_decay"),
                ..ParamsAdam::adamw()
            }),
            other => panic!("unknown base {other}"),
        }
    }

    pub fn method(&self) -> Method {
        let config = &self.case["wrapper_config"];
        let number = |name: &str| config[name].as_f64().unwrap();
        let init = match config["slow_init"].as_str() {
            Some("first_sync") => SlowInit::FirstSync,
            None => SlowInit::Construction,
            other => panic!("unknown slow_init {other:?}"),
        };
        let norm = if config["groups"].is_array() {
            AscentNorm::PerGroup
        } else {
            AscentNorm::Global
        };
        match self.wrapper() {
            "none" => Method::Base,
            "lookahead" => Method::Lookahead(ParamsLookahead {
                k: self.k() as u64,
                alpha: number("alpha"),
                init,
                ..Default::default()
            }),
            "sam" if config["adaptive"] == true => Method::Asam(ParamsAsam {
                rho: number("rho"),
                eta: 0.0,
                ..Default::default()
            }),
            "sam" => Method::Sam(ParamsSam {
                rho: number("rho"),
                ..Default::default()
            }),
            "sala" => Method::Sala(ParamsSala {
                k: self.k() as u64,
                alpha: number("alpha"),
                rho: number("rho"),
                init,
                norm,
                ..Default::default()
            }),
            other => panic!("unknown wrapper {other}"),
        }
    }

    /// The problem's loss on the data of `step` (from 0).
    pub fn loss(&self, vars: &[(String, Var)], step: usize, _pass: Pass) -> Result<Tensor> {
        let var = |name: &str| {
            vars.iter()
                .find(|(n, _)| n == name)
                .unwrap()
                .1
                .as_tensor()
                .clone()
        };
        match self.case["problem"].as_str().unwrap() {
            "mlp" => {
                let x = self.at("batch.x", step);
                let labels = self.at("batch.y", step);
                let hidden = x
                    .matmul(&var("w1").t()?)?
                    .broadcast_add(&var("b1"))?
                    .tanh()?;
                let logits = hidden.matmul(&var("w2").t()?)?.broadcast_add(&var("b2"))?;
                let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
                let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
                let log_p = shifted.broadcast_sub(&log_sum)?;
                log_p.gather(&labels.unsqueeze(1)?, 1)?.mean_all()?.neg()
            }
            "quadratic" => {
                let bowl = |w: Tensor, centre: Tensor, curvature: &Tensor| -> Result<Tensor> {
                    ((w - centre)?.sqr()? * curvature)?.sum_all()? * 0.5
                };
                bowl(var("w"), self.at("batch.c", step), &self.tensors["batch.h"])?
                    + bowl(var("v"), self.at("batch.d", step), &self.tensors["batch.k"])?
            }
            "rosenbrock" => {
                let (x, y) = (var("x"), var("y"));
                let valley = (y - x.sqr()?)?.sqr()?;
                ((1.0 - x)?.sqr()? + (valley * 100.0)?)?.sum_all()
            }
            other => panic!("unknown problem {other}"),
        }
    }
}

//! Operations and small networks: gradients against central differences, and all results against those of
//! the composed forms on the CPU in f64, of the same (rounded) numbers.

use std::rc::Rc;

use anyhow::Result;
use candle_core::{DType, Device};
use sala_core::testing::{DEVICE_F32, GRADCHECK, Tolerance, differences, read};
use sala_models::kernels::{Choice, with_choice};

use super::{
    FORMS,
    check::{Section, Verdict, agree, of_operations},
    dtypes, has_f64, networks,
    operations::{self, Operation, Size},
    place::{Place, Subject},
    task::Task,
};

/// Everything there is to check of operations.
pub(super) fn tasks(device: &Device) -> Vec<Task> {
    let operations: Vec<Rc<Operation>> = operations::all().into_iter().map(Rc::new).collect();
    let mut tasks = of_differences(device, &operations);
    for operation in &operations {
        for dtype in dtypes(device) {
            tasks.extend(of_operation(device, operation, dtype));
        }
    }
    for network in networks::all() {
        let operation = Rc::new(network.operation());
        // Roundings of half precision add up over layers, by how much nobody says.
        let dtypes = dtypes(device).filter(|dtype| matches!(dtype, DType::F64 | DType::F32));
        for dtype in dtypes {
            tasks.extend(of_operation(device, &operation, dtype));
        }
    }
    tasks
}

fn of_differences(device: &Device, operations: &[Rc<Operation>]) -> Vec<Task> {
    let dtype = if has_f64(device) {
        DType::F64
    } else {
        DType::F32
    };
    let mut tasks = vec![];
    for operation in operations {
        for form in FORMS {
            let (place, operation) = (Place::new(device.clone(), dtype), Rc::clone(operation));
            let (section, name) = (Section::Differences, operation.name);
            tasks.push(Task::new(section, name, dtype, form, move || {
                against_differences(&operation, &place, form)
            }));
        }
    }
    tasks
}

pub(super) fn of_operation(device: &Device, operation: &Rc<Operation>, dtype: DType) -> Vec<Task> {
    let task = |form| {
        let exact = device.is_cpu() && form == Choice::Auto && operation.is_exact();
        let tolerance = of_operations(dtype, exact);
        let (place, operation) = (Place::new(device.clone(), dtype), Rc::clone(operation));
        let (section, name) = (Section::Operations, operation.name);
        Task::new(section, name, dtype, form, move || {
            against_reference(&operation, &place, form, tolerance)
        })
    };
    FORMS.map(task).into()
}

/// The gradients at a place against differences of the same loss: at the same place in f64, or where the device
/// has no f64, on the CPU of the same numbers.
fn against_differences(operation: &Operation, place: &Place, form: Choice) -> Result<Verdict> {
    let here = place.dtype == DType::F64;
    let (exact, exact_form, tolerance) = if here {
        (place.clone(), form, GRADCHECK)
    } else {
        (place.reference(), Choice::Composed, DEVICE_F32)
    };
    let checked = operation.subject(place, Size::Small, form)?;
    let gradients = checked.evaluate(place, form)?;
    let Subject { vars, forward, .. } = operation.subject(&exact, Size::Small, exact_form)?;
    let loss = || {
        let y = with_choice(exact_form, &forward)?;
        exact.weigh(&y)?.to_scalar::<f64>()
    };
    let mut verdict = Verdict::empty();
    for ((part, gradient), (_, var)) in gradients.iter().skip(1).zip(&vars) {
        let wanted = differences(var, loss)?;
        verdict.compare(part, tolerance, &read(gradient)?, &wanted);
    }
    Ok(verdict)
}

fn against_reference(
    operation: &Operation,
    place: &Place,
    form: Choice,
    tolerance: Tolerance,
) -> Result<Verdict> {
    let evaluate = |place: &Place, form| {
        let subject = operation.subject(place, Size::Large, form)?;
        subject.evaluate(place, form)
    };
    let wanted = evaluate(&place.reference(), Choice::Composed)?;
    Ok(agree(&evaluate(place, form)?, &wanted, tolerance)?)
}

#[cfg(test)]
mod tests {
    use candle_core::Tensor;
    use sala_models::kernels::choice;

    use super::*;
    use crate::verify::{check::Check, operations::function};

    const X: &[operations::Input] = &[("x", &[2, 3], &[4, 5])];

    /// x², with a mistake in the form that the program takes.
    fn square(mistake: fn(&Tensor) -> candle_core::Result<Tensor>) -> Rc<Operation> {
        let op = move |t: &[Tensor]| match choice()? {
            Choice::Composed => t[0].sqr(),
            _ => mistake(&t[0]),
        };
        Rc::new(function("square", "square", X, op))
    }

    fn checks(operation: &Rc<Operation>) -> [Vec<Check>; 2] {
        let device = Device::Cpu;
        let run = |tasks: Vec<Task>| tasks.into_iter().map(Task::check).collect();
        [
            run(of_differences(&device, std::slice::from_ref(operation))),
            run(of_operation(&device, operation, DType::F32)),
        ]
    }

    fn passed(checks: &[Check]) -> Vec<bool> {
        checks.iter().map(|check| check.passed).collect()
    }

    #[test]
    fn a_right_operation_passes() {
        let [differences, values] = checks(&square(Tensor::sqr));
        assert_eq!(passed(&differences), [true, true]);
        assert_eq!(passed(&values), [true, true]);
        assert_eq!(values[0].verdict.compared, 40);
    }

    #[test]
    fn a_wrong_value_fails_in_the_form_that_has_it_and_says_by_how_much() {
        let [_, values] = checks(&square(|x| x.sqr()? * 1.001));
        assert_eq!(passed(&values), [false, true]);
        let text = values[0].to_string();
        for part in ["square in f32, kernels auto", ", element ", "allowed"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let worst = values[0].verdict.worst.as_ref().unwrap();
        assert!((worst.got / worst.wanted - 1.001).abs() < 1e-6, "{worst:?}");
        assert!((worst.difference - (worst.got - worst.wanted).abs()).abs() < 1e-12);
    }

    // The value is right, so only the gradient tells.
    #[test]
    fn a_wrong_gradient_fails_against_differences_and_the_reference() {
        let [differences, values] = checks(&square(|x| x * x.detach()));
        assert_eq!(passed(&differences), [false, true]);
        assert_eq!(passed(&values), [false, true]);
        assert!(
            values[0].to_string().contains("gradient of x"),
            "{}",
            values[0]
        );
    }

    #[test]
    fn a_cut_gradient_an_error_and_a_panic_are_failures_that_say_so() {
        for (mistake, message) in [
            (
                (|x| Ok(x.detach())) as fn(&Tensor) -> _,
                "`x` received no gradient",
            ),
            (|_| candle_core::bail!("no such kernel"), "no such kernel"),
            (|_| panic!("out of kernels"), "out of kernels"),
            (
                |x| x.narrow(0, 0, 1)?.sqr(),
                "shape [4, 5] wanted, got [1, 5]",
            ),
        ] {
            let [_, values] = checks(&square(mistake));
            assert_eq!(passed(&values), [false, true]);
            assert!(values[0].to_string().contains(message), "{}", values[0]);
        }
    }

    #[test]
    fn numbers_that_are_not_finite_fail() {
        let [_, values] = checks(&square(|x| x.sqr()? * f64::NAN));
        assert_eq!(passed(&values), [false, true]);
    }
}

//! Starting from a checkpoint: a layer of the same name and geometry is copied, every other starts fresh. Both lists
//! are returned, so that nothing is copied or left out silently.

use super::Copied;
use crate::error::{Error, Result};
use crate::exec::contract::Params;
use crate::net::{Network, Op, Traced};

/// Copies into `params`, the fresh parameters of `net`, every layer that `source_params`, the parameters of
/// `source`, has under the same name and with the same geometry.
///
/// # Errors
/// [`Error::Checkpoint`] if no layer at all fits.
pub fn copy(source: &Network, source_params: &Params, net: &Network, params: &mut Params) -> Result<Copied> {
    let report = compare(source, net)?;
    for (index, layer) in net.layers.iter().enumerate().filter(|(_, l)| report.copied.contains(&l.name)) {
        for param in params.0.iter_mut().filter(|p| p.layer == index) {
            match source_params.get(&param.name) {
                Some(from) if from.shape == param.shape => param.data.copy_from_slice(&from.data),
                _ => {
                    return Err(Error::Checkpoint(format!(
                        "the checkpoint has no usable tensor {} for layer {}",
                        param.name, layer.name
                    )));
                }
            }
        }
    }
    Ok(report)
}

/// What [`copy`] will copy from a network, and what not.
///
/// # Errors
/// [`Error::Checkpoint`] if no layer at all fits.
pub fn compare(source: &Network, net: &Network) -> Result<Copied> {
    let theirs = source.trace()?;
    let mut report = Copied::default();
    for ours in net.trace()?.iter().filter(|t| t.params() > 0) {
        let name = &ours.layer.name;
        let reason = match theirs.iter().find(|t| &t.layer.name == name) {
            None => Some("not in the checkpoint".to_string()),
            Some(t) => difference(t, ours),
        };
        match reason {
            Some(reason) => report.fresh.push((name.clone(), reason)),
            None => report.copied.push(name.clone()),
        }
    }
    if report.copied.is_empty() {
        return Err(Error::Checkpoint(format!(
            "no layer of network {} is in the checkpoint (network {}) with the same name and geometry: {report}; \
             choose the checkpoint's network with --net, or train without --from",
            net.name, source.name
        )));
    }
    Ok(report)
}

/// Why weights of `theirs` cannot serve `ours`, or `None` if they can. How they were initialized does not matter.
fn difference(theirs: &Traced, ours: &Traced) -> Option<String> {
    let (a, b) = (&theirs.layer.op, &ours.layer.op);
    let same = match (a, b) {
        (Op::Conv(a), Op::Conv(b)) => {
            (a.filters, a.kernel, a.stride, a.pad, a.groups, a.rounding)
                == (b.filters, b.kernel, b.stride, b.pad, b.groups, b.rounding)
        }
        (Op::Linear(a), Op::Linear(b)) => a.outputs == b.outputs,
        (Op::BatchNorm(_), Op::BatchNorm(_)) => true,
        _ => return Some(format!("{} there, {} here", a.kind(), b.kind())),
    };
    if same && theirs.weight == ours.weight {
        None
    } else if theirs.weight != ours.weight {
        Some(format!("{} there, {} here", sizes(&theirs.weight), sizes(&ours.weight)))
    } else {
        Some("another stride, padding or grouping".into())
    }
}

fn sizes(shape: &[usize]) -> String {
    shape.iter().map(usize::to_string).collect::<Vec<_>>().join("×")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::testing::small_net;

    fn numbered(net: &Network, start: f32) -> Params {
        let mut params = Params::zeros(net).unwrap();
        let mut next = start;
        for value in params.0.iter_mut().flat_map(|p| p.data.iter_mut()) {
            *value = next;
            next += 1.0;
        }
        params
    }

    #[test]
    fn layers_that_fit_are_copied_and_the_others_listed() {
        let source = small_net(3);
        let net = small_net(5);
        let old = numbered(&source, 1.0);
        let mut params = numbered(&net, 1e6);
        let untouched = params.clone();
        let report = copy(&source, &old, &net, &mut params).unwrap();
        assert_eq!(report.copied, ["conv1", "fc1"]);
        assert_eq!(report.fresh, [("fc2".to_string(), "3×6 there, 5×6 here".to_string())]);
        for p in &params.0 {
            let expected = if p.name.starts_with("fc2") { untouched.get(&p.name) } else { old.get(&p.name) };
            assert_eq!(p.data, expected.unwrap().data, "{}", p.name);
        }
    }

    #[test]
    fn the_same_shape_with_another_stride_is_not_copied() {
        let source = small_net(3);
        let mut net = small_net(3);
        if let Op::Conv(conv) = &mut net.layers[0].op {
            conv.stride = 1;
        }
        let report = copy(&source, &numbered(&source, 1.0), &net, &mut Params::zeros(&net).unwrap()).unwrap();
        assert_eq!(report.fresh[0], ("conv1".to_string(), "another stride, padding or grouping".to_string()));
        assert!(report.copied.contains(&"fc2".to_string()), "{report}");
    }

    #[test]
    fn nothing_in_common_is_an_error() {
        let source = small_net(3);
        let mut net = small_net(5);
        for layer in &mut net.layers {
            layer.name.push('x');
        }
        let error =
            copy(&source, &numbered(&source, 1.0), &net, &mut Params::zeros(&net).unwrap()).unwrap_err();
        assert_eq!(error.exit_code(), 4);
        assert!(error.to_string().contains("not in the checkpoint"), "{error}");
    }
}

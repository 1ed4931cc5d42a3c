//! A network's answer about a picture is the mean of its answers about one or ten views of it (the paper, §4.1: the
//! four corners, the centre, and their mirror images; the probabilities are averaged).

use super::metrics::Tally;
use crate::data::{Augment, Loader, LoaderConfig, Pack, Preprocess, Sample, View};
use crate::error::{Error, Result};
use crate::exec::contract::Executor;
use std::sync::Arc;

/// Pictures whose views are listed at a time, so that the list of millions of pictures takes no room.
const LISTED: usize = 1 << 16;

/// The views that `--views` stands for: 1, the centre, or 10.
///
/// # Errors
/// [`Error::Config`] for any other number.
pub fn of_number(n: usize) -> Result<&'static [View]> {
    match n {
        1 => Ok(&[View::Centre]),
        10 => Ok(&View::TEN),
        _ => Err(Error::Config(format!(
            "{n} views: there are 1 (the centre) and 10 (corners, centre, mirrored)"
        ))),
    }
}

/// Receives a picture's index with its mean output; `None` if it could not be decoded.
pub type EachPicture<'a> = dyn FnMut(u32, Option<&[f32]>) -> Result<()> + 'a;

/// Runs the views of each picture through an executor for inference, and hands each picture's mean output to `each`
/// in the order of `pictures`; `None` for a picture that could not be decoded.
///
/// # Errors
/// [`Error::Config`] if pictures, preparation and the network's input do not fit together; whatever `each` returns.
pub fn mean_outputs(
    executor: &mut dyn Executor,
    pack: &Arc<Pack>,
    pictures: &[u32],
    preprocess: &Arc<Preprocess>,
    views: &[View],
    each: &mut EachPicture,
) -> Result<()> {
    let config = LoaderConfig {
        pack: Arc::clone(pack),
        layout: executor.input_layout(),
        preprocess: Arc::clone(preprocess),
        augment: Augment::none(),
        seed: 0,
    };
    config.check()?;
    let width = executor.output_len();
    let mut output = vec![0.0; config.layout.batch * width];
    let mut loader = Loader::new(config);
    let mut sum = vec![0.0f32; width];
    let mut seen = 0;
    for listed in pictures.chunks(LISTED) {
        loader.begin(Sample::of(listed, views), 0, 0);
        while let Some(loaded) = loader.next(executor.threads()) {
            let rows = &mut output[..loaded.samples.len() * width];
            executor.infer(loaded.as_batch(), rows);
            for (n, sample) in loaded.samples.iter().enumerate() {
                sum.iter_mut().zip(&rows[n * width..]).for_each(|(total, value)| *total += value);
                seen += 1;
                if seen == views.len() {
                    sum.iter_mut().for_each(|total| *total /= views.len() as f32);
                    let readable = loaded.weights[n] > 0.0;
                    each(sample.picture, readable.then_some(&sum[..]))?;
                    sum.fill(0.0);
                    seen = 0;
                }
            }
        }
    }
    Ok(())
}

/// Error rates over pictures of a pack; pictures that could not be decoded are not counted. `progress` is told
/// (pictures done, pictures in all).
///
/// # Errors
/// As [`mean_outputs`]; [`Error::Data`] if pack and network have different numbers of classes.
pub fn tally(
    executor: &mut dyn Executor,
    pack: &Arc<Pack>,
    pictures: &[u32],
    preprocess: &Arc<Preprocess>,
    views: &[View],
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Tally> {
    let classes = executor.output_len();
    if pack.classes().len() != classes {
        return Err(Error::Data(format!(
            "the pictures have {} classes and the network {classes}",
            pack.classes().len()
        )));
    }
    let mut tally = Tally::new(classes);
    let mut done = 0;
    mean_outputs(executor, pack, pictures, preprocess, views, &mut |picture, probabilities| {
        if let Some(probabilities) = probabilities {
            tally.add(probabilities, pack.label(picture as usize));
        }
        done += 1;
        progress(done, pictures.len());
        Ok(())
    })?;
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::pack::NewPicture;
    use crate::data::{Mean, PackOptions};
    use crate::exec::reference::Reference;
    use crate::net::Network;
    use crate::train::init;

    const SIDE: usize = 12;

    fn pack() -> Arc<Pack> {
        let options = PackOptions { side: SIDE, ..PackOptions::default() };
        let picture = |i: u32| NewPicture {
            path: format!("{i}.png"),
            label: i % 2,
            split: None,
            pixels: match i {
                2 => Err("cut short".into()),
                _ => Ok((0..SIDE * SIDE * 3).map(|p| (p as u32 * (7 + i) % 251) as u8).collect()),
            },
        };
        Arc::new(Pack::from_pictures(vec!["a".into(), "b".into()], &options, (0..5).map(picture)).unwrap())
    }

    fn preprocess() -> Arc<Preprocess> {
        let mean = Mean::Channels([0.5; 3]);
        Arc::new(Preprocess { side: SIDE, crop: 8, mean, std: [0.25; 3], ..Preprocess::torchvision() })
    }

    fn executor(batch: usize) -> Reference<f32> {
        let net = Network::from_toml(
            "name = 'n'\ninput = [3, 8, 8]\nlayer = [\n{ name = 'conv1', type = 'conv', filters = 4, kernel = 3 },\n\
             { name = 'relu1', type = 'relu' },\n{ name = 'fc2', type = 'linear', outputs = 2 }]",
            "test",
        )
        .unwrap();
        let mut executor = Reference::new(&net, batch, None).unwrap();
        executor.set_params(&init::fresh(&net, 1).unwrap());
        executor
    }

    fn outputs(batch: usize, views: &[View]) -> Vec<Option<Vec<f32>>> {
        let mut found = Vec::new();
        let order = [4, 2, 0, 1];
        mean_outputs(&mut executor(batch), &pack(), &order, &preprocess(), views, &mut |picture, output| {
            assert_eq!(picture, order[found.len()]);
            found.push(output.map(<[f32]>::to_vec));
            Ok(())
        })
        .unwrap();
        found
    }

    #[test]
    fn ten_views_are_the_mean_of_each() {
        // Batches of seven: a picture's views lie in two batches.
        let ten = outputs(7, &View::TEN);
        assert_eq!(ten.len(), 4);
        assert_eq!(ten[1], None);
        let each: Vec<_> = View::TEN.iter().map(|&view| outputs(3, &[view])).collect();
        for (i, mean) in ten.iter().enumerate().filter(|&(i, _)| i != 1) {
            for class in 0..2 {
                let expected: f32 =
                    each.iter().map(|view| view[i].as_ref().unwrap()[class]).sum::<f32>() / 10.0;
                assert!((mean.as_ref().unwrap()[class] - expected).abs() < 1e-6);
            }
        }
        assert_ne!(each[0][0], each[5][0], "mirrored views differ");
    }

    #[test]
    fn unreadable_pictures_do_not_count() {
        let (mut executor, all) = (executor(4), [0, 1, 2, 3, 4]);
        let mut told = 0;
        let counted =
            tally(&mut executor, &pack(), &all, &preprocess(), &[View::Centre], &mut |done, _| told = done)
                .unwrap();
        assert_eq!((counted.pictures(), told), (4, 5));
        assert!(of_number(7).is_err());
    }
}

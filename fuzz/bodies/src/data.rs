//! Structures: a file of them, and the pairs of one.

use std::path::Path;

use arbitrary::Unstructured;
use kilnbox_data::NeighborListOptions;
use kilnbox_data::extended_xyz::{self, Frame};
use kilnbox_data::neighbor_list::{Geometry, PairList, neighbor_list};

use crate::text::check_message;
use crate::within;

/// The text of an extended XYZ file. What is read and written reads the same.
///
/// # Panics
/// Reading panics, or this does not hold.
pub fn extended_xyz(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    within(20, || {
        let frames = match extended_xyz::parse(text, Path::new("data.xyz")) {
            Ok(frames) => frames,
            Err(error) => return check_message(&error.to_string()),
        };
        let written = written(&frames);
        let again = extended_xyz::parse(&written, Path::new("written.xyz"))
            .unwrap_or_else(|error| panic!("structures that were written cannot be read: {error}\n{written}"));
        // NaN, which equals nothing, is printed like any other number.
        assert_eq!(format!("{again:?}"), format!("{frames:?}"), "structures read otherwise from\n{written}");
    });
}

fn written(frames: &[Frame]) -> String {
    let mut bytes = Vec::new();
    for frame in frames {
        extended_xyz::write(&mut bytes, frame).unwrap_or_else(|error| panic!("memory cannot be written to: {error}"));
    }
    String::from_utf8(bytes).unwrap_or_else(|error| panic!("structures are written as no text: {error}"))
}

/// The pairs of a few atoms, against a search that tries everything.
///
/// # Panics
/// The search panics, or finds other pairs.
pub fn neighbor_list_of(bytes: &[u8]) {
    let mut input = Unstructured::new(bytes);
    let mut byte = || input.arbitrary::<u8>().unwrap_or(0);
    let flags = byte();
    let periodic = [flags & 1 != 0, flags & 2 != 0, flags & 4 != 0];
    let (full_list, strict, odd) = (flags & 8 != 0, flags & 16 != 0, flags & 32 != 0);
    let count = usize::from(byte() % 9);
    let cutoff = f64::from(byte()) / 64.0;
    // Edges along the axes, skewed by up to half of them; numbers on a grid, so that atoms lie on faces and at exactly the cutoff.
    let mut cell = [0.0; 9];
    for (entry, value) in cell.iter_mut().enumerate() {
        let number = f64::from(byte());
        *value = if entry % 4 == 0 { number / 32.0 } else { (number - 128.0) / 256.0 };
    }
    let mut positions: Vec<f64> = (0..3 * count).map(|_| (f64::from(byte()) - 96.0) / 16.0).collect();
    if odd {
        // One number that nobody expects, anywhere.
        let number = f64::from_bits(input.arbitrary().unwrap_or(0));
        let place = usize::from(input.arbitrary::<u8>().unwrap_or(0)) % (9 + positions.len());
        match positions.get_mut(place.wrapping_sub(9)) {
            Some(position) => *position = number,
            None => cell[place % 9] = number,
        }
    }
    let geometry = Geometry { positions: &positions, cell: &cell, periodic };
    let options = NeighborListOptions { cutoff, full_list, strict };
    if too_many(geometry, cutoff) {
        return;
    }
    let found = match within(20, || neighbor_list(geometry, &options)) {
        Ok(found) => found,
        Err(error) => return check_message(&error.to_string()),
    };
    check_pairs(geometry, &options, &found);
    if let Some(images) = images(geometry, cutoff) {
        check_against_every_pair(geometry, &options, &found, images);
    }
}

/// Whether there are so many pairs that finding them takes more time than a try should.
fn too_many(geometry: Geometry<'_>, cutoff: f64) -> bool {
    let c = geometry.cell;
    let edges = [0, 1, 2].map(|k| (c[3 * k].powi(2) + c[3 * k + 1].powi(2) + c[3 * k + 2].powi(2)).sqrt());
    let volume = (c[0] * (c[4] * c[8] - c[5] * c[7]) - c[1] * (c[3] * c[8] - c[5] * c[6])
        + c[2] * (c[3] * c[7] - c[4] * c[6]))
        .abs();
    let images = match geometry.periodic {
        [true, true, true] => 4.2 * cutoff.powi(3) / volume,
        _ => (0..3).filter(|&k| geometry.periodic[k]).map(|k| 1.0 + 2.0 * cutoff / edges[k]).product(),
    };
    let slant = edges.iter().product::<f64>() / volume;
    let pairs = images * (geometry.positions.len() / 3).pow(2) as f64;
    // Also where the cell is so flat that it has many images far away. What is no number at all is for the search to refuse.
    pairs > 1e5 && pairs < 1e9 || geometry.periodic != [false; 3] && slant > 1e3 && slant.is_finite()
}

/// How many images along each direction may hold neighbours; none if these are too many to try.
fn images(geometry: Geometry<'_>, cutoff: f64) -> Option<i32> {
    let c = geometry.cell;
    let rows = [0, 1, 2].map(|k| [c[3 * k], c[3 * k + 1], c[3 * k + 2]]);
    let cross =
        |a: [f64; 3], b: [f64; 3]| [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
    let dot = |a: [f64; 3], b: [f64; 3]| a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
    let reach = geometry.positions.iter().fold(0.0_f64, |most, value| most.max(value.abs()));
    let span = cutoff + 2.0 * 3_f64.sqrt() * reach;
    let periodic: Vec<usize> = (0..3).filter(|&k| geometry.periodic[k]).collect();
    let mut most = 0.0_f64;
    for &k in &periodic {
        // The part of a cell vector that is at right angles to the other periodic ones.
        let height = match periodic.iter().copied().filter(|&other| other != k).collect::<Vec<_>>()[..] {
            [] => dot(rows[k], rows[k]).sqrt(),
            [other] => {
                let area = cross(rows[k], rows[other]);
                (dot(area, area) / dot(rows[other], rows[other])).sqrt()
            }
            [one, other] => {
                let normal = cross(rows[one], rows[other]);
                dot(rows[k], normal).abs() / dot(normal, normal).sqrt()
            }
            _ => return None,
        };
        most = most.max(span / height);
    }
    let tries = (2.0 * most + 3.0).powi(periodic.len() as i32) * (geometry.positions.len() as f64 / 3.0).powi(2);
    (tries <= 2e5).then_some(most.ceil() as i32 + 1)
}

fn distance(geometry: Geometry<'_>, first: usize, second: usize, shift: [i32; 3]) -> f64 {
    let squared: f64 = (0..3)
        .map(|axis| {
            let offset: f64 = (0..3)
                .filter(|&row| shift[row] != 0)
                .map(|row| f64::from(shift[row]) * geometry.cell[3 * row + axis])
                .sum();
            (geometry.positions[3 * second + axis] - geometry.positions[3 * first + axis] + offset).powi(2)
        })
        .sum();
    squared.sqrt()
}

/// What holds of every list: each pair is there, once, in order, and within the cutoff.
fn check_pairs(geometry: Geometry<'_>, options: &NeighborListOptions, found: &PairList) {
    assert_eq!(found.atoms.len(), found.shifts.len());
    let pairs: Vec<_> = found.atoms.iter().zip(&found.shifts).collect();
    assert!(pairs.is_sorted_by(|one, next| one < next), "pairs are repeated or not in order");
    for (&[first, second], &shift) in pairs {
        assert!(
            (0..3).all(|k| geometry.periodic[k] || shift[k] == 0),
            "a shift along a direction that does not repeat"
        );
        let distance = distance(geometry, first as usize, second as usize, shift);
        // Coordinates of some 10 are rounded to 2e-15.
        assert!(distance <= options.cutoff + 1e-9, "{first} and {second} by {shift:?} are {distance} apart");
    }
}

fn check_against_every_pair(geometry: Geometry<'_>, options: &NeighborListOptions, found: &PairList, images: i32) {
    let count = geometry.positions.len() / 3;
    let along = |k: usize| if geometry.periodic[k] { -images..=images } else { 0..=0 };
    let mut expected = 0;
    for (first, second) in (0..count).flat_map(|first| (0..count).map(move |second| (first, second))) {
        for shift in along(0).flat_map(|a| along(1).flat_map(move |b| along(2).map(move |c| [a, b, c]))) {
            let listed = match (options.full_list, first == second) {
                (true, true) => shift != [0; 3],
                (true, false) => true,
                (false, true) => shift > [0; 3],
                (false, false) => first < second,
            };
            let distance = distance(geometry, first, second, shift);
            let within = distance < options.cutoff || !options.strict && distance == options.cutoff;
            // The order in which a distance is summed up may decide at the cutoff itself.
            if !listed || (distance - options.cutoff).abs() < 1e-12 {
                continue;
            }
            let key = ([first as u32, second as u32], shift);
            let place = found.atoms.iter().copied().zip(found.shifts.iter().copied()).any(|pair| pair == key);
            assert_eq!(place, within, "{first} and {second} by {shift:?} are {distance} apart");
            expected += usize::from(within);
        }
    }
    assert!(found.atoms.len() >= expected);
}

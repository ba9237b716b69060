//! Small data sets in every form, written and read.

use image::RgbImage;

use super::*;

/// All values of each picture, interleaved, with the name of its class.
fn read_all(path: &Path, part: Option<Part>) -> Result<Vec<(Vec<u8>, String)>> {
    let prepare = |picture: DynamicImage| Ok(picture.into_rgb8().into_raw());
    let pictures = read(path, part, Columns::USUAL, prepare)?;
    let names = pictures.labels.iter().map(|&l| pictures.names[l].clone());
    Ok(pictures.items.into_iter().zip(names).collect())
}

/// An image whose red is its number and whose green counts its pixels.
fn picture(number: u8) -> Vec<u8> {
    let pixel = |i: usize| [number, u8::try_from(i % 256).unwrap(), 7];
    (0..1024).flat_map(pixel).collect()
}

fn planes(number: u8) -> Vec<u8> {
    let pixels = picture(number);
    let plane = |c| pixels.iter().copied().skip(c).step_by(3);
    (0..3).flat_map(plane).collect()
}

fn text<T: std::fmt::Debug>(result: Result<T>) -> String {
    format!("{:#}", result.unwrap_err())
}

#[test]
fn binary_records_and_sprites_are_the_same_images() {
    let folder = tempfile::tempdir().unwrap();
    let (binary, sprites) = (folder.path().join("binary"), folder.path().join("sprites"));
    fs::create_dir(&binary).unwrap();
    fs::create_dir(&sprites).unwrap();
    for (name, numbers) in [
        ("data_batch_1", [3_u8, 9]),
        ("data_batch_2", [0, 1]),
        ("test_batch", [8, 2]),
    ] {
        let records: Vec<u8> = numbers
            .iter()
            .flat_map(|&n| [vec![n], planes(n)].concat())
            .collect();
        fs::write(binary.join(format!("{name}.bin")), records).unwrap();
        let rows: Vec<u8> = numbers.iter().flat_map(|&n| picture(n)).collect();
        let sprite = RgbImage::from_raw(1024, 2, rows).unwrap();
        sprite.save(sprites.join(format!("{name}.png"))).unwrap();
    }
    fs::write(sprites.join("train_lables.json"), "[3, 9, 0, 1]").unwrap();
    fs::write(sprites.join("test_lables.json"), "[8, 2]").unwrap();
    for part in [Part::Train, Part::Test] {
        let one = split(&binary, part, None).unwrap();
        assert_eq!(one, split(&sprites, part, None).unwrap());
        let first = if part == Part::Train { 3 } else { 8 };
        assert_eq!((one.shape(), one.labels()[0]), ([3, 32, 32], first));
        assert_eq!(one.image(0).unwrap(), planes(first));
        let as_pictures = read_all(&binary, Some(part)).unwrap();
        assert_eq!(as_pictures[0], (picture(first), first.to_string()));
        assert_eq!(as_pictures, read_all(&sprites, Some(part)).unwrap());
    }
    assert!(text(read_all(&binary, None)).contains("hold out a share"));
    let resized = split(&binary, Part::Train, Some(Resize(8)));
    assert!(text(resized).contains("data.image_size"));
    fs::write(
        binary.join("batches.meta.txt"),
        "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n\n",
    )
    .unwrap();
    let named = split(&binary, Part::Train, None).unwrap();
    assert_eq!(named.class_names()[3], "d");
    fs::write(sprites.join("train_lables.json"), "[3]").unwrap();
    let message = text(split(&sprites, Part::Train, None));
    assert!(message.contains("1 labels for 4 images"), "{message}");
    fs::write(binary.join("data_batch_2.bin"), [0; 3000]).unwrap();
    let message = text(split(&binary, Part::Train, None));
    assert!(
        message.contains("data_batch_2.bin: wanted records of 3073"),
        "{message}"
    );
    fs::write(
        binary.join("data_batch_2.bin"),
        [&[10][..], &planes(1)].concat(),
    )
    .unwrap();
    let message = text(split(&binary, Part::Train, None));
    assert!(
        message.contains("wanted labels below 10, got 10"),
        "{message}"
    );
}

#[test]
fn the_second_label_of_a_hundred_classes_counts() {
    let folder = tempfile::tempdir().unwrap();
    for (name, coarse, fine) in [("train.bin", 19, 99), ("test.bin", 1, 0)] {
        let record = [vec![coarse, fine], planes(5)].concat();
        fs::write(folder.path().join(name), record).unwrap();
    }
    let train = split(folder.path(), Part::Train, None).unwrap();
    assert_eq!((train.labels(), train.classes()), (&[99][..], 100));
    assert_eq!(train.image(0).unwrap(), planes(5));
    let test = split(folder.path(), Part::Test, None).unwrap();
    assert_eq!(test.labels(), [0]);
    train.ensure_like(&test).unwrap();
}

/// A folder for each of the classes `dog` and `cat`, with a picture in it.
fn class_folders(folder: &Path) {
    for (class, number) in [("dog", 4), ("cat", 200)] {
        let class = folder.join(class);
        fs::create_dir_all(&class).unwrap();
        fs::write(class.join("note.txt"), "no image").unwrap();
        let image = RgbImage::from_raw(32, 32, picture(number)).unwrap();
        image.save(class.join("a.png")).unwrap();
    }
}

#[test]
fn each_folder_is_a_class() {
    let folder = tempfile::tempdir().unwrap();
    class_folders(folder.path());
    let images = read_all(folder.path(), None).unwrap();
    let wanted = [
        (picture(200), "cat".to_owned()),
        (picture(4), "dog".to_owned()),
    ];
    assert_eq!(images, wanted);
    let message = text(split(folder.path(), Part::Train, None));
    assert!(message.contains("folders `train` and `test`"), "{message}");
    fs::write(folder.path().join("cat/b.jpg"), "no image").unwrap();
    assert!(text(read_all(folder.path(), Some(Part::Train))).contains("b.jpg"));
    fs::create_dir(folder.path().join("emu")).unwrap();
    fs::remove_file(folder.path().join("cat/b.jpg")).unwrap();
    let message = text(read_all(folder.path(), Some(Part::Train)));
    assert!(message.contains("emu holds no PNG"), "{message}");
}

#[test]
fn folders_of_parts_make_a_data_set() {
    let folder = tempfile::tempdir().unwrap();
    class_folders(&folder.path().join("train"));
    let message = text(split(folder.path(), Part::Test, None));
    assert!(message.contains("has no folder test"), "{message}");
    class_folders(&folder.path().join("val"));
    let train = split(folder.path(), Part::Train, None).unwrap();
    assert_eq!(train, split(folder.path(), Part::Test, None).unwrap());
    assert_eq!(train.class_names(), ["cat", "dog"]);
    assert_eq!(train.image(1).unwrap(), planes(4));
    let small = split(folder.path(), Part::Train, Some(Resize(8))).unwrap();
    assert_eq!(small.shape(), [3, 8, 8]);
    // Red is the same in all pixels, whatever they are averaged over.
    assert_eq!(small.image(0).unwrap()[..64], [200; 64]);
    let wide = RgbImage::new(40, 32);
    wide.save(folder.path().join("train/dog/b.png")).unwrap();
    let message = text(split(folder.path(), Part::Train, None));
    assert!(
        message.contains("b.png: wanted an image of 32×32") && message.contains("32×40"),
        "{message}"
    );
    assert!(split(folder.path(), Part::Train, Some(Resize(8))).is_ok());
}

#[test]
fn idx_files_are_those_of_the_project() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../datasets/fashion-mnist");
    let prepare = |picture: DynamicImage| Ok(picture.into_luma8().into_raw());
    let images = read(&folder, Some(Part::Train), Columns::USUAL, prepare).unwrap();
    assert_eq!((images.items.len(), images.items[0].len()), (5000, 784));
    assert_eq!(images.names[images.labels[0]], "Ankle boot");
}

#[test]
fn pictures_without_labels_are_named_by_their_files() {
    let folder = tempfile::tempdir().unwrap();
    class_folders(folder.path());
    let cats = folder.path().join("cat");
    let (names, pixels) = unlabelled(&cats, "image", |p| Ok(p.into_rgb8().into_raw())).unwrap();
    assert_eq!((names.len(), &pixels[0]), (1, &picture(200)));
    assert!(names[0].ends_with("a.png"), "{names:?}");
    let message = text(unlabelled(folder.path(), "image", Ok));
    assert!(message.contains("holds no PNG"), "{message}");
}

#[test]
fn names_are_ordered_by_the_alphabet_and_numbers_by_value() {
    assert_eq!(in_order(["b", "a", "b"]), ["a", "b"]);
    assert_eq!(in_order(["10", "9", "-1"]), ["-1", "9", "10"]);
    assert_eq!(in_order(["10", "9", "x"]), ["10", "9", "x"]);
}

#[cfg(not(feature = "parquet"))]
#[test]
fn a_build_without_parquet_says_so() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("train-0.parquet"), "").unwrap();
    let message = text(split(folder.path(), Part::Train, None));
    assert!(message.contains("--features parquet"), "{message}");
}

#[cfg(feature = "parquet")]
mod parquet {
    use std::io::Cursor;

    use image::ImageFormat;

    use super::*;
    use crate::data::parquet::tests::write_images;

    /// A picture as the bytes of a PNG file.
    fn png(number: u8) -> Vec<u8> {
        let image = RgbImage::from_raw(32, 32, picture(number)).unwrap();
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn files_of_a_part_are_read_one_after_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        write_images(&path("train-1.parquet"), &[(png(1), 10)]);
        write_images(&path("train-0.parquet"), &[(png(3), 9), (png(4), 10)]);
        write_images(&path("test-0.parquet"), &[(png(5), 10), (png(6), 9)]);
        let train = split(folder.path(), Part::Train, None).unwrap();
        assert_eq!(
            (train.labels(), train.class_names()[1].as_str()),
            (&[0, 1, 1][..], "10")
        );
        assert_eq!(train.image(0).unwrap(), planes(3));
        assert_eq!(train.image(2).unwrap(), planes(1));
        let test = split(folder.path(), Part::Test, None).unwrap();
        train.ensure_like(&test).unwrap();
        let one = read_all(&path("test-0.parquet"), None).unwrap();
        assert_eq!(one[1], (picture(6), "9".to_owned()));
        assert!(split(&path("test-0.parquet"), Part::Test, None).is_err());
        fs::remove_file(path("test-0.parquet")).unwrap();
        let message = text(split(folder.path(), Part::Test, None));
        assert!(message.contains("no file test*.parquet"), "{message}");
    }

    #[test]
    fn a_row_that_is_no_picture_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.parquet");
        write_images(&file, &[(png(1), 0), (vec![1, 2, 3], 1)]);
        let message = text(read_all(&file, None));
        assert!(message.contains("a.parquet, row 2"), "{message}");
    }
}

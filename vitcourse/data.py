"""The data that needs no network: scikit-learn's handwritten digits, in one fixed split."""

import numpy as np

#: Which digits are held out is decided by this seed, once: a model trained on other splits would be tested on its own data.
SPLIT_SEED = 0

#: Digits held out for testing, of 1,797.
HELD_OUT = 397


def load_digits_split() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The 1,797 digits as `(train_images, train_labels, test_images, test_labels)`: 1,400 to learn from, 397 held out.

    Images are uint8 of shape (n, 8, 8), white ink (255) on black (0); labels are int64 of shape (n,), 0 to 9. The split
    is stratified (each digit has its share of both parts) and the same on every call.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    # The data's own scale counts 0 to 16 inked pixels in each 4 x 4 block of the scan.
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=HELD_OUT, stratify=labels, random_state=SPLIT_SEED
    )
    return train_images, train_labels, test_images, test_labels

"""Images: reading, downloading, colour conversion, transforms, augmentation."""

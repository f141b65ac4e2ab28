"""What several test files need: exact answers, small models, folders of images. A test file imports from here alone."""

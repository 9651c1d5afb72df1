"""The mathematics: arrays in, frozen results out. No model, file, clock or screen."""

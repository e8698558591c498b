"""The lesson `looking_inside`: what the heads and layers of a trained model do."""

"""What can still be done with a trained model's scores, features and weights; numpy, on anyone's arrays."""

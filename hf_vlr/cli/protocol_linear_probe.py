"""`hf-vlr protocol linear-probe`."""

from hf_vlr.cli.protocol_command import protocol_command

command = protocol_command(
    "linear-probe",
    """Fit multinomial logistic regression (scikit-learn, L-BFGS) on frozen image features.

    C, the inverse strength of L2, is chosen on validation images from 97 values between 1e-6 and 1e6: seven first, then
    closer and closer around the best. Without a validation split, data.validation_fraction of the training images is
    held out. With shots=[5,20,50,0] the probe sees that many images of a class (0: all), three draws each; then the
    choice sees no more of a class either.

    \b
    hf-vlr protocol linear-probe runs/stage1 --data imagefolder:photos
    hf-vlr protocol linear-probe runs/stage1 --data imagefolder:photos shots=[5,20,50,0] seeds=[0,1,2,3,4]
    hf-vlr protocol linear-probe runs/stage1 --data imagefolder:photos features=standard class_weight=balanced
    """,
)

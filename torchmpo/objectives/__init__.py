"""Objectives: a loss with all it needs, ready to be applied to pairs.

A loss says what it consumes by the names of its positional parameters (:mod:`.inputs`).
:mod:`.bound` binds a loss to hyper-parameters, :mod:`.mirror` is a learned loss whose flat vector
is what evolution searches (its functions are :mod:`.monotone`), :mod:`.resolve` finds either by a
name, and :mod:`.gradients` shows what one does to a pair. :mod:`.balance` weighs two terms while
they are trained. :mod:`.fingerprint` tells whether one's
own has been edited, :mod:`.soundness` whether one that was read from a file is what it should be.
``discovered/`` are objectives that searches found.

Imports :mod:`torchmpo.losses` and the errors and files of :mod:`torchmpo.runs`, and from outside
torch and safetensors.
"""

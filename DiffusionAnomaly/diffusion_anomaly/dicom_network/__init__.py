"""DICOM over the network: a node that receives studies and sends results back, and a DICOMweb client.

Above the detection and below the command line. pynetdicom, dicomweb-client and PyYAML, the extra ``dicom-node``, are
imported where they are used. No scheduler, no archive and no encoding of DICOM of its own: studies wait in folders,
associations are pynetdicom's, the objects highdicom's.
"""

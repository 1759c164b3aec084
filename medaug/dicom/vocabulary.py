"""Imaging words that do not identify a person, even if a header contains them in a name or a number.

Patients of a study often have names such as `SARCOMA_025_CT`. If `CT` were therefore removed from messages, nobody
could write a rule for the region of interest `GTV_Mass_CT`. Words that are also common family names (Day, Gray, Ko,
Post, Rose, Small, Wall, White) are deliberately not listed.
"""

# Defined terms of Modality (0008,0060), of views and of orientations.
_CODES = """
asmt bdus bmd cfm cr ct ctprotocol dg dms doc dr dx ecg eeg emg eog eps es ester fid fs gm hc hd io iol ivoct ivus ker
key kt mg mr mri ms nm oam oct op opm opr opt optbsv opv oss osteo ot pa plan pr pt ptct pet petct petmr px reg resp
rf rg rtdose rtimage rtintent rtplan rtrad rtrecord rtsegann rtstruct rwv seg sm smr sr srf stain stereometric
texturemap tg us va vf xa xaprotocol xc xrf cbct spect dsa ap lat ll rl lr rao lao cc mlo ax axial cor coronal sag
sagittal tra transverse obl oblique lt rt hf hfs hfp ffs ffp
"""
_SEQUENCES = """
t1 t2 t1w t2w t1c t1ce t1gd t2star pd pdw flair mprage mp2rage space vibe vista bravo spgr fspgr gre tse fse tir stir
spair ssfp bssfp fisp truefisp epi se ir tof mra mrv mrs mrcp cta ctp dce dsc dwi dti adc swi qsm asl cbf cbv mtt ttp
b0 2d 3d 4d pre native contrast gd gado gadolinium arterial venous portal delayed late phase phases dynamic perfusion
diffusion magnitude imaginary water fat opposed dixon fatsat fs nofs enhanced unenhanced weighted original derived
primary secondary reformatted mpr mip minip average reg registered resampled corrected nac attenuation suv fdg psma
dota bone soft kernel window thin thick slice slices series study scan scans scout localizer localiser topogram survey
calibration reference image images volume stack label labels map maps mask masks seg segmentation segmentations
segment contour contours structure structures dose plan protocol acquisition recon reconstruction body whole
"""
_ANATOMY = """
abdomen adrenal airway ankle anterior anus aorta appendix arm arteries artery atrium axilla basal bile bladder blood
bones bowel brachial brain brainstem breast bronchi bronchus calf callosum canal cardiac carotid cartilage caudate
cavity cerebellum cerebral cerebrum cervical cervix chest chiasm chiasma clavicle cochlea colon cord cornea corpus
cortex cranial cyst diaphragm disc duct duodenum ear elbow esophagus oesophagus extremity eye eyes face femoral femur
fibula finger foot frontal gallbladder ganglia gland glands globe glottis groin hand head heart hemisphere hepatic
hilum hip hippocampus hippocampi humerus hypothalamus ileum iliac inguinal intestine jaw jejunum joint jugular kidney
kidneys knee lacrimal larynx leg legs ligament limb lips liver lobe lower lumbar lung lungs lymph mandible maxilla
mediastinum medulla meniscus mouth muscle muscles myocardium nasal nasopharynx neck nerve nerves node nodes nose
occipital optic oral orbit orbits oropharynx ovary palate pancreas parietal parotid parotids patella pectoral pelvic
pelvis penis pericardium peritoneum pharynx pituitary placenta pleura pons portal posterior prostate pulmonary putamen
rectum renal retina retroperitoneum rib ribs sacrum scalp scapula scrotum seminal septum shoulder sinus sinuses
skeleton skin skull spinal spine spleen sternum stomach subclavian submandibular sulcus temporal tendon testis
thalamus thigh thoracic thorax throat thymus thyroid tibia tissue toe tongue tonsil trachea trunk ulna upper ureter
urethra uterus vagina vein veins vena cava ventricle ventricles ventricular vertebra vertebrae vertebral vessel
vessels vulva wrist left right bilateral medial lateral superior inferior proximal distal central peripheral inner
outer
"""
_FINDINGS = """
abscess active aneurysm ascites benign calcification cancer carcinoma core ctv edema oedema effusion enhancing
external fluid fracture glioblastoma glioma gtv gtvn gtvp gtvt haemorrhage hemorrhage hematoma infarct infarction
infiltration inflammation itv lesion lesions lymphoma malignant mass melanoma meningioma metastases metastasis myeloma
necrosis necrotic nodule nodules non nonenhancing oar oars perilesional peritumoral plaque pneumonia primary prv ptv
recurrence residual sarcoma stenosis stroke thrombus tumor tumors tumour tumours background foreground region regions
roi rois
"""
_PLAIN = """
and or of the for with without by in from not other patient patients subject subjects case cases control controls
healthy volunteer phantom test training data dataset sample baseline follow followup visit session week month year
anonymous anonymised anonymized unknown none hospital clinic centre center institute institution university department
medical medicine imaging radiology radiotherapy oncology neurology cardiology surgery health research station scanner
"""

FIELD_WORDS = frozenset(" ".join((_CODES, _SEQUENCES, _ANATOMY, _FINDINGS, _PLAIN)).split())
"""In lower case."""
